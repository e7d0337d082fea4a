"""No module imports, directly or through others, a module that imports it.

Imports inside functions and under TYPE_CHECKING count: they only postpone a circle.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("compact", "targets", "exporters", "runtime_bench", "compact_edge", "benchmarks")

# Module -> imported module -> line of the import.
Imports = dict[str, dict[str, int]]


def modules(root: Path) -> dict[str, Path]:
    """Every first-party module by its dotted name; a package is named as its folder."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of whatever is imported anywhere in a module; `from a import b` is `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def import_graph(sources: Mapping[str, Path]) -> Imports:
    """What each module imports of the others."""
    graph: Imports = {}
    for name, path in sources.items():
        graph[name] = {}
        for imported, line in imported_names(ast.parse(path.read_text("utf-8"))):
            module = imported if imported in sources else imported.rpartition(".")[0]
            if module in sources:
                graph[name].setdefault(module, line)
    return graph


def circles(graph: Imports) -> list[set[str]]:
    """The strongly connected components of more than one module, and modules that import themselves (Tarjan 1972)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(name: str) -> None:
        number[name] = lowest[name] = len(number)
        stack.append(name)
        for other in graph[name]:
            if other not in number:
                visit(other)
            if other in stack:
                lowest[name] = min(lowest[name], lowest[other])
        if lowest[name] == number[name]:
            at = stack.index(name)
            component = set(stack[at:])
            del stack[at:]
            if len(component) > 1 or name in graph[name]:
                found.append(component)

    for name in graph:
        if name not in number:
            visit(name)
    return found


def described(circle: set[str], graph: Imports) -> str:
    """The circle's modules, and the line of every import that holds it together."""
    lines = [
        f"  {name.replace('.', '/')}.py:{line} imports {other}"
        for name in sorted(circle)
        for other, line in graph[name].items()
        if other in circle
    ]
    return "\n".join([f"{' <-> '.join(sorted(circle))} import each other:", *lines])


def test_no_modules_import_each_other() -> None:
    graph = import_graph(modules(ROOT))
    assert len(graph) > 200
    wrong = [described(circle, graph) for circle in circles(graph)]
    assert not wrong, "\n".join([*wrong, "move what both need into a module that imports neither"])


@pytest.mark.parametrize(
    "held_open_by",
    [
        "from compact.first import ONE",
        "from compact import first",
        "import compact.first",
        "def late():\n    from compact.first import ONE",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from compact.first import ONE",
    ],
)
def test_a_circle_is_found_and_named_with_its_lines(held_open_by: str, tmp_path: Path) -> None:
    (tmp_path / "compact").mkdir()
    written = {"first": "\nfrom compact.second import TWO", "second": "import compact.third", "third": held_open_by}
    for name, text in {**written, "apart": "from compact.first import ONE"}.items():
        (tmp_path / "compact" / f"{name}.py").write_text(text, "utf-8")
    graph = import_graph(modules(tmp_path))
    assert circles(graph) == [{"compact.first", "compact.second", "compact.third"}]
    message = described(circles(graph)[0], graph)
    assert "compact/first.py:2 imports compact.second" in message
    assert f"compact/third.py:{held_open_by.count(chr(10)) + 1} imports compact.first" in message
