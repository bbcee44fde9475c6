"""Errors as a program meets them."""

import pickle

import pytest

from tests.error_trees import class_tree, drawn_tree
from tureen import errors
from tureen.errors import ImageTooLargeError, InvalidBetaError, SingleTokenError, UndecodableImageError


@pytest.mark.parametrize(
    "error", [InvalidBetaError(7), SingleTokenError(), UndecodableImageError(), ImageTooLargeError("pixels", 25)]
)
def test_an_error_crosses_to_another_process_with_its_message_and_its_attributes(error):
    error.index = 3

    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes():
    assert drawn_tree(errors) == class_tree(errors)
