import asyncio
import io
import json
import logging
import sys

import pytest

from serve.telemetry.logs import BatchedHandler, JsonFormatter, configure_logs, log_event


def record(message, *arguments, exc_info=None, **extra):
    made = logging.LogRecord("tureen.serve", logging.WARNING, __file__, 1, message, arguments, exc_info)
    vars(made).update(extra)
    return made


def formatted(*arguments, **options):
    line = JsonFormatter({"worker": 2}).format(record(*arguments, **options))
    assert "\n" not in line
    return json.loads(line)


def test_a_record_is_one_line_with_the_constant_and_the_specific_fields():
    entry = formatted("β is %s", 0.5, fields={"request_id": "a"})
    assert entry.pop("time").endswith("+00:00")
    assert entry == {
        "level": "warning",
        "logger": "tureen.serve",
        "message": "β is 0.5",
        "worker": 2,
        "request_id": "a",
    }


def test_a_value_that_json_has_no_form_for_is_written_as_text():
    assert formatted("x", fields={"path": {1}})["path"] == "{1}"


def test_an_exception_is_in_the_line_with_its_traceback():
    try:
        raise ZeroDivisionError("cause")
    except ZeroDivisionError:
        exception = formatted("failed", exc_info=sys.exc_info())["exception"]
    assert exception.startswith("Traceback")
    assert exception.endswith("ZeroDivisionError: cause")


@pytest.fixture
def own_handlers():
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)
    logging.captureWarnings(False)


@pytest.mark.usefixtures("own_handlers")
def test_records_from_the_level_up_go_to_standard_error(capsys):
    configure_logs("warning", worker=1)
    logging.getLogger("tureen.serve").info("below")
    logging.getLogger("tureen.serve").error("above")
    (line,) = capsys.readouterr().err.splitlines()
    assert (json.loads(line)["message"], json.loads(line)["worker"]) == ("above", 1)


class Stream(io.StringIO):
    """Keeps each text that is written."""

    def __init__(self):
        super().__init__()
        self.written = []

    def write(self, text):
        self.written.append(text)
        return len(text)


def batched():
    stream = Stream()
    logger = logging.Logger("test")
    logger.addHandler(BatchedHandler(stream))
    return logger, stream


def test_the_lines_of_one_step_of_the_event_loop_are_written_together():
    async def run():
        logger, stream = batched()
        logger.info("a")
        logger.info("b")
        assert stream.written == []
        await asyncio.sleep(0)
        assert stream.written == ["a\nb\n"]
        logger.info("c")
        logger.error("d")
        assert stream.written[1:] == ["c\nd\n"]
        await asyncio.sleep(0)
        assert len(stream.written) == 2

    asyncio.run(run())


def test_without_an_event_loop_each_line_is_written_immediately():
    logger, stream = batched()
    logger.info("a")
    logger.info("b")
    assert stream.written == ["a\n", "b\n"]


def test_lines_of_a_loop_that_has_ended_are_written_by_a_flush():
    logger, stream = batched()

    async def run():
        logger.info("last")

    asyncio.run(run())
    logger.handlers[0].flush()
    assert stream.written == ["last\n"]


def test_an_event_has_its_fields_and_respects_the_level(caplog):
    with caplog.at_level(logging.INFO, "tureen.test"):
        log_event(logging.getLogger("tureen.test"), logging.DEBUG, "below", {})
        log_event(logging.getLogger("tureen.test"), logging.INFO, "request", {"status": 200})
    (record,) = caplog.records
    assert (record.getMessage(), record.fields) == ("request", {"status": 200})
