"""Writes the metadata of the Hugging Face hub into a model card: the block of YAML at the start of README.md."""

from __future__ import annotations

import re
from typing import Final

from tureen.bundle.manifest import LICENSE, LICENSE_PATTERN, AccuracyRow, Manifest
from tureen.errors import BundleError

TASK: Final = "image-classification"
TAGS: Final = ("adversarial-robustness", "model-soup", "vision-transformer")
_METADATA: Final = re.compile(r"\A---\r?\n.*?^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_NORMS: Final = {"linf": "l∞", "l2": "l2", "l1": "l1"}


def hub_card(manifest: Manifest, card: str) -> str:
    """Returns the model card with the metadata of the hub, which replace the metadata that the card has.

    The metadata are the library, the task, tags, the license if the provenance of the manifest has one, and the clean
    and robust accuracy at each β. Raises BundleError if the license is not an identifier such as "apache-2.0".
    """
    from huggingface_hub import EvalResult, ModelCardData

    given = manifest.provenance.get(LICENSE)
    if given is not None and not (isinstance(given, str) and re.fullmatch(LICENSE_PATTERN, given)):
        raise BundleError("the license in the provenance of the manifest is not an identifier such as apache-2.0")
    results = [
        EvalResult(
            task_type=TASK,
            dataset_type=manifest.name,
            dataset_name=f"held-out images of {manifest.name}",
            metric_type="accuracy",
            metric_name=name,
            metric_value=value,
            metric_args=figures,
        )
        for row in manifest.accuracy
        for name, value, figures in _metrics(row)
    ]
    data = ModelCardData(
        library_name="tureen",
        pipeline_tag=TASK,
        tags=list(TAGS),
        license=given.lower() if given else None,
        model_name=manifest.name,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml(line_break=chr(10)).strip()}\n---\n{_METADATA.sub('', card, count=1)}"


def _metrics(row: AccuracyRow) -> list[tuple[str, float, dict[str, object]]]:
    """Returns name, value and arguments of the clean and the robust accuracy of a row."""
    attack = f"{row.attack}, {_NORMS[row.norm]} ε = {row.epsilon_255:g}/255, n = {row.n}"
    arguments = {"attack": row.attack, "norm": row.norm, "epsilon_255": row.epsilon_255}
    return [
        (f"clean accuracy at β = {row.beta:g} (n = {row.n})", row.clean.value, {"beta": row.beta, "n": row.n}),
        (
            f"robust accuracy at β = {row.beta:g} ({attack})",
            row.robust.value,
            {"beta": row.beta, "n": row.n, **arguments},
        ),
    ]
