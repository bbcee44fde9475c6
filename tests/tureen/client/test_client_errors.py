import pickle

import pytest

from serve.http.problems import INTERNAL, PROBLEM_TYPES
from tests.error_trees import class_tree, drawn_tree
from tureen.client import client_errors
from tureen.client.client_errors import (
    DeadlineError,
    NotReadyError,
    OverloadedError,
    RefusedError,
    ServerError,
    UnreachableError,
    error_class,
)

EXPECTED = {408: DeadlineError, 429: OverloadedError, 500: ServerError, 503: NotReadyError, 504: DeadlineError}


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes():
    assert drawn_tree(client_errors) == class_tree(client_errors)


@pytest.mark.parametrize("kind", [*PROBLEM_TYPES.values(), INTERNAL], ids=lambda kind: kind.code)
def test_every_code_of_the_server_has_the_class_of_its_status(kind):
    assert error_class(kind.code, kind.status) is EXPECTED.get(kind.status, RefusedError)


def test_every_code_that_has_a_class_is_one_of_the_server():
    assert set(client_errors.CLASS_OF_CODE) <= {kind.code for kind in PROBLEM_TYPES.values()}


@pytest.mark.parametrize(("status", "expected"), [(502, ServerError), (503, NotReadyError), (404, RefusedError)])
def test_a_response_of_a_proxy_has_the_class_of_its_status(status, expected):
    assert error_class("unexpected_response", status) is expected


def test_an_error_shows_its_detail_and_code_also_in_another_process():
    error = UnreachableError("no connection", code="unreachable")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.code, copy.status) == ("no connection (unreachable)", "unreachable", None)
