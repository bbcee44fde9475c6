"""The text about a learned token: its origin, and its accuracy beside that of the best β."""

from tests.learned_tokens import SHARE, make_record
from tureen.bundle.bundle import load_bundle
from tureen.bundle.examples import EXAMPLES
from tureen.bundle.token_file import TokenAccuracy
from tureen.commands.token_report import token_summary


def test_a_token_has_a_line_for_its_origin_and_a_row_for_each_measurement():
    attacked = TokenAccuracy(
        n=20, token=SHARE, best_beta=SHARE, wins=3, losses=1, p_value=0.31, attack="apgd, 20 steps", epsilon_255=4
    )
    record = make_record(load_bundle(EXAMPLES / "cifar10"), "fog")
    record = record.model_copy(update={"is_robust": True, "accuracy": [*record.accuracy, attacked]})
    origin, _, clean, robust, _ = token_summary(record).splitlines()
    assert origin == "fog: learned from 50 images under attack, in 60 steps, for cifar10"
    assert clean.startswith("without an attack")
    assert robust.startswith("under apgd, 20 steps, ε = 4/255")
    assert robust.split()[-3:] == ["3", "1", "0.31"]
