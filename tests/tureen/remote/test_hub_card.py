"""The metadata of a model card on the hub."""

import pytest
from huggingface_hub import ModelCard

from tureen.bundle.bundle import MODEL_CARD, read_manifest
from tureen.bundle.examples import EXAMPLES
from tureen.errors import BundleError
from tureen.remote.hub_card import hub_card

BUNDLE = EXAMPLES / "cifar10"
CARD = (BUNDLE / MODEL_CARD).read_text()


def manifest(**provenance):
    known = read_manifest(BUNDLE)
    return known.model_copy(update={"provenance": {**known.provenance, **provenance}})


def test_the_card_has_the_library_the_task_and_both_accuracies_at_each_beta():
    text = hub_card(manifest(), CARD)
    data = ModelCard(text).data
    assert (data.library_name, data.pipeline_tag) == ("tureen", "image-classification")
    assert "adversarial-robustness" in data.tags
    assert data.license is None
    rows = read_manifest(BUNDLE).accuracy
    found = {
        (one.metric_name.split()[0], one.metric_args["beta"]): one.metric_value
        for one in data.eval_results
    }  # fmt: skip
    assert found == {(kind, row.beta): getattr(row, kind).value for row in rows for kind in ("clean", "robust")}
    robust = next(one for one in data.eval_results if one.metric_name.startswith("robust"))
    assert robust.metric_name == "robust accuracy at β = 0 (APGD-20 (CE, targeted DLR), l∞ ε = 4/255, n = 500)"
    assert (robust.metric_args["epsilon_255"], robust.metric_args["n"]) == (4, 500)


def test_the_text_of_the_card_stays_and_its_metadata_are_replaced_once():
    text = hub_card(manifest(), CARD)
    assert text.split("\n---\n", 1)[1] == CARD.split("\n---\n", 1)[1]
    assert hub_card(manifest(), text) == text
    assert hub_card(manifest(), "no metadata\n---\n").endswith("\n---\nno metadata\n---\n")


def test_the_license_is_that_of_the_provenance():
    assert ModelCard(hub_card(manifest(license="Apache-2.0"), CARD)).data.license == "apache-2.0"
    with pytest.raises(BundleError, match="is not an identifier"):
        hub_card(manifest(license="free\nfor all"), CARD)
