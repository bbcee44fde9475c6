"""The events that TensorBoard reads."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.reporting.tensorboard_logger import TensorBoardLogger
from tureen.bundle.bundle import load_bundle
from tureen.bundle.examples import EXAMPLES


def test_events_hold_settings_scalars_and_the_accuracy_by_beta(tmp_path):
    rows = load_bundle(EXAMPLES / "cifar10").manifest.accuracy
    logger = TensorBoardLogger(tmp_path, step=0)
    logger.add_settings({"model.depth": 3})
    logger.add_scalars(10, {"clean_loss": 0.5})
    logger.add_accuracy(rows)
    logger.add_artefact("checkpoint", tmp_path)
    logger.close("finished")
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("clean_loss")] == [(10, 0.5)]
    for name, share in (("clean", lambda row: row.clean), ("robust", lambda row: row.robust)):
        found = [(event.step, event.value) for event in events.Scalars(f"accuracy_at_100_beta/{name}")]
        assert found == [(round(100 * row.beta), pytest.approx(share(row).value)) for row in rows]
    texts = {tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in events.Tags()["tensors"]}
    assert "| model.depth | 3 |" in texts["settings/text_summary"]
    assert texts["checkpoint/text_summary"] == str(tmp_path)
    assert texts["outcome/text_summary"] == "finished"


def test_a_continued_run_hides_the_events_after_its_saved_state(tmp_path):
    for first, steps in ((0, (10, 20)), (10, (15,))):
        logger = TensorBoardLogger(tmp_path, step=first)
        for step in steps:
            logger.add_scalars(step, {"clean_loss": step})
        logger.close("interrupted")
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("clean_loss")] == [10, 15]
