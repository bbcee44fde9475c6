import inspect
import re

from serve import errors


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes():
    drawn = {}
    path = []
    for line in errors.__doc__.splitlines():
        match = re.match(r"([│ ]*(?:[├└]── )?)(\w+Error)\b", line)
        if match:
            depth = len(match[1]) // 4
            path = [*path[:depth], match[2]]
            drawn[match[2]] = path[-2] if depth else None
    classes = {
        name: cls for name, cls in inspect.getmembers(errors, inspect.isclass) if cls.__module__ == errors.__name__
    }
    assert {name: parent for name, parent in drawn.items() if parent} == {
        name: cls.__bases__[0].__name__ for name, cls in classes.items()
    }
