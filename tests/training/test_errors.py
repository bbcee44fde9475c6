from tests.error_trees import class_tree, drawn_tree
from training import errors


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes():
    assert drawn_tree(errors) == class_tree(errors)
