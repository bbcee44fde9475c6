"""The tree of errors that a module draws in its docstring, and the tree of its classes."""

import inspect
import re


def drawn_tree(module):
    """Returns the name of the base class by the name of each class that the docstring draws below TureenError."""
    lines = [re.match(r"[ │├└─]*(\w+Error)\b", line) for line in module.__doc__.splitlines()]
    names = [(match[1], match.start(1)) for match in lines if match]
    tree, path = {}, []
    for name, column in names:
        path = [*path[: (column - names[0][1]) // 4], name]
        if len(path) > 1:
            tree[name] = path[-2]
    return tree


def class_tree(module):
    """Returns the name of the first base class by the name of each class of the module, without TureenError."""
    classes = [cls for _, cls in inspect.getmembers(module, inspect.isclass) if cls.__module__ == module.__name__]
    return {cls.__name__: cls.__bases__[0].__name__ for cls in classes if cls.__name__ != "TureenError"}
