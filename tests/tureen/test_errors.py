"""Errors as a program meets them."""

import pickle

import pytest

from tests.error_trees import class_tree, drawn_tree
from tureen import errors
from tureen.errors import ImageTooLargeError, InvalidBetaError, SingleTokenError, UndecodableImageError, did_you_mean


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


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("epocs", "; did you mean 'epochs'?"),
        ("EPOCHS", "; did you mean 'epochs'?"),
        ("depth", "; did you mean 'model.depth'?"),
        ("warm_up", "; did you mean 'warmup'?"),
        ("", ""),
        ("colour", ""),
    ],
)
def test_a_refused_name_is_followed_by_the_similar_one_if_there_is_one(name, end):
    assert did_you_mean(name, ("epochs", "model.depth", "warmup")) == end
