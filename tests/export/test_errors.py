from export import errors
from tests.error_trees import class_tree, drawn_tree


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes():
    assert drawn_tree(errors) == class_tree(errors)
