"""What a stranger relies on when looking for a file: small rooms, one sentence for each, no name twice, no circle."""

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("serve", "training", "tureen", "export")
MAX_MODULES = 15
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
TESTED_ELSEWHERE = {
    "serve/control/worker_state.py": "it holds types alone: the tests of the classes that implement them test it",
}


def modules(package):
    return [path for path in sorted((ROOT / package).rglob("*.py")) if not path.stem.endswith("_pb2")]


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path):
    """Every module that a module imports, also inside its functions; not what only a type checker reads."""
    found, waiting = set(), list(ast.parse(path.read_text()).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        waiting.extend(ast.iter_child_nodes(node))
    return found


def circles(graph):
    """The sets of modules that import each other, by Tarjan's algorithm."""
    order, low, stack, result = {}, {}, [], []

    def visit(node):
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in graph[node]:
            if other not in order:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], order[other])
        if low[node] == order[node]:
            members = set()
            while node not in members:
                members.add(stack.pop())
            if len(members) > 1:
                result.append(sorted(members))

    for node in graph:
        if node not in order:
            visit(node)
    return result


@pytest.mark.parametrize("package", PACKAGES)
def test_no_room_has_more_modules_than_one_can_overlook(package):
    counts = Counter(path.parent.relative_to(ROOT).as_posix() for path in modules(package) if path.stem != "__init__")
    assert {room: count for room, count in counts.items() if count > MAX_MODULES} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_each_room_is_described(package):
    undescribed = []
    for path in modules(package):
        room = path.parent / "__init__.py"
        if not room.exists() or not ast.get_docstring(ast.parse(room.read_text())):
            undescribed.append(path.parent.relative_to(ROOT).as_posix())
    assert sorted(set(undescribed)) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_two_modules_of_a_package_share_a_name(package):
    names = Counter(path.name for path in modules(package) if path.stem != "__init__")
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_two_public_classes_of_a_package_share_a_name(package):
    names = Counter(
        node.name
        for path in modules(package)
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_modules_import_each_other(package):
    by_name = {name_of(path): path for path in modules(package)}
    graph = {name: sorted((imports_of(path) & by_name.keys()) - {name}) for name, path in by_name.items()}
    assert circles(graph) == []


def file_of_tests(path):
    """Returns the test file of a module by name. The test file of a package has the name of its folder."""
    tested = path.parent / path.parent.name if path.stem == "__init__" else path
    return ROOT / "tests" / path.parent.relative_to(ROOT) / f"test_{tested.stem}.py"


@pytest.mark.parametrize("package", PACKAGES)
def test_each_module_with_a_function_or_class_has_its_test_file_by_name(package):
    without = []
    for path in modules(package):
        has_code = any(isinstance(node, DEFINITIONS) for node in ast.walk(ast.parse(path.read_text())))
        if has_code and not file_of_tests(path).exists():
            without.append(path.relative_to(ROOT).as_posix())
    assert without == [name for name in TESTED_ELSEWHERE if name.startswith(f"{package}/")]
