"""The file of the finished runs: read as it was written, and refused for other inputs."""

import pytest

from training.adapt.cross_validation import FinishedRuns, FoldRun, PairRun
from training.adapt.learning import Score
from training.adapt.saved_runs import read_runs, save_runs
from training.errors import DataError

RUNS = FinishedRuns(
    pairs={"0,1": PairRun(first=[Score(1, 0.1 + 0.2)], second=[Score(0, 1e-9)])},
    folds={"0": FoldRun(start=0.3, steps=5, token=[0.1, -2.0])},
)
INPUTS = {"--seed": "0", "--data": "ab"}


def test_runs_are_read_as_they_were_saved(tmp_path):
    assert read_runs(tmp_path / "x.part", INPUTS) == FinishedRuns()
    save_runs(tmp_path / "deep" / "x.part", INPUTS, RUNS)
    assert read_runs(tmp_path / "deep" / "x.part", INPUTS) == RUNS


def test_runs_of_other_inputs_are_refused(tmp_path):
    save_runs(tmp_path / "x.part", INPUTS, RUNS)
    with pytest.raises(DataError, match="saved with other values of: --seed; give the same values"):
        read_runs(tmp_path / "x.part", {**INPUTS, "--seed": "1"})


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"inputs": {}}', b"\xff"])
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / "x.part").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.part is damaged: delete it, or omit --resume"):
        read_runs(tmp_path / "x.part", INPUTS)
