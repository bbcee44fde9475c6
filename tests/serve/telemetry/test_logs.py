import json
import logging
import sys

import pytest

from serve.telemetry.logs import JsonFormatter, configure_logs


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
