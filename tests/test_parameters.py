"""No function takes more than six positional parameters: a call with more of them cannot be read.

Further parameters are keyword-only, or fields of a dataclass.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("compact", "targets", "exporters", "runtime_bench", "compact_edge", "benchmarks", "docs", "examples")
MOST = 6


def positional(tree: ast.Module) -> Iterator[tuple[str, int, int]]:
    """(name, line, number of positional parameters) of every function, without `self` and `cls` of methods."""
    methods = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for child in node.body
        if not any(isinstance(of, ast.Name) and of.id == "staticmethod" for of in getattr(child, "decorator_list", ()))
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            count = len(node.args.posonlyargs) + len(node.args.args)
            yield node.name, node.lineno, count - (id(node) in methods)


def test_no_function_takes_more_than_six_positional_parameters() -> None:
    counted = [
        (path.relative_to(ROOT), name, line, count)
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        for name, line, count in positional(ast.parse(path.read_text("utf-8")))
    ]
    assert len(counted) > 2000
    wrong = [f"{path}:{line} {name} takes {count}" for path, name, line, count in counted if count > MOST]
    assert not wrong, "\n".join([*wrong, "make some of them keyword-only (after `*`), or fields of a dataclass"])


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("def f(a, b, /, c, d): ...", 4),
        ("def f(a, *, b, c): ...", 1),
        ("def f(a, *b, **c): ...", 1),
        ("async def f(a, b=1): ...", 2),
        ("class C:\n    def f(self, a): ...", 1),
        ("class C:\n    @classmethod\n    def f(cls, a): ...", 1),
        ("class C:\n    @staticmethod\n    def f(a, b): ...", 2),
    ],
)
def test_positional_parameters_are_counted(code: str, count: int) -> None:
    assert [found for _, _, found in positional(ast.parse(code))] == [count]
