"""Packages import one way only, and library code neither prints nor ends the process."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# package: the others that it may import
MAY_IMPORT: dict[str, set[str]] = {
    "compact": set(),
    "exporters": {"compact"},
    "targets": {"compact", "exporters"},
    "runtime_bench": {"compact", "exporters", "targets"},
    "compact_edge": {"compact", "exporters", "targets", "runtime_bench"},
    "benchmarks": {"compact", "exporters", "targets", "runtime_bench", "compact_edge"},
}
# The rooms of each package, from the ground up. A room imports only from lower floors of its package. "." means the
# modules beside the rooms, such as `compact.decide` and `compact_edge.flags`.
FLOORS: dict[str, tuple[tuple[str, ...], ...]] = {
    "compact": (
        ("base",),
        ("checkpoints", "texts", "architectures"),
        ("vocabulary",),
        ("sources", "forward"),
        ("calibration",),
        ("pruning",),
        ("search", "repair", "distill"),
        (".",),
    ),
    "exporters": (("native",), ("llamacpp", "gguf_writer"), (".",), ("gguf", "onnx")),
    "targets": ((".",),),
    "runtime_bench": (
        ("transports", "toolchain"),
        (".",),
        ("device",),
        ("engines",),
        ("measuring",),
        ("report",),
    ),
    "compact_edge": (
        ("terminal",),
        (".",),
        ("front",),
        ("building",),
        ("inspect", "tasks", "bench"),
        ("release",),
        ("cli",),
    ),
}
# What a user starts or imports lies beside the rooms, and imports from all of them.
DOORS = {"compact_edge/__init__.py", "compact_edge/__main__.py"}
LIBRARIES = ("compact", "exporters", "targets", "runtime_bench")
HEAVY = {"torch", "transformers", "tokenizers", "numpy", "llama_cpp", "gguf", "safetensors", "pyarrow", "rich"}

MODULES = [path for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]


def label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every absolute import, those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module, node.lineno


def imported_at_load(body: list[ast.stmt]) -> Iterator[str]:
    """The top-level packages that importing the module imports: not those in functions or under TYPE_CHECKING."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (name.partition(".")[0] for name, _ in imported(node))
        elif isinstance(node, ast.If):
            if "TYPE_CHECKING" not in ast.dump(node.test):
                yield from imported_at_load(node.body)
            yield from imported_at_load(node.orelse)
        elif isinstance(node, ast.Try):
            yield from imported_at_load([*node.body, *node.orelse, *node.finalbody])
            for handler in node.handlers:
                yield from imported_at_load(handler.body)
        elif isinstance(node, ast.ClassDef | ast.With):
            yield from imported_at_load(node.body)


@pytest.mark.parametrize("path", MODULES, ids=label)
def test_a_module_imports_only_what_its_package_may(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    allowed = MAY_IMPORT[package] | {package}
    wrong = [
        f"line {line}: {name}"
        for name, line in imported(ast.parse(path.read_text("utf-8")))
        if name.partition(".")[0] in MAY_IMPORT and name.partition(".")[0] not in allowed
    ]
    assert not wrong, f"{label(path)} imports against the direction: {wrong}"


def floor_of(parts: tuple[str, ...]) -> tuple[str, int] | None:
    """(room, floor) of a module by the parts of its path; None outside the packages with rooms."""
    package, *inner = parts
    if package not in FLOORS:
        return None
    rooms = {room: number for number, floor in enumerate(FLOORS[package]) for room in floor}
    room = inner[0] if inner and inner[0] in rooms else "."
    return room, rooms[room]


@pytest.mark.parametrize("path", [p for p in MODULES if p.relative_to(ROOT).parts[0] in FLOORS], ids=label)
def test_a_module_imports_from_lower_floors(path: Path) -> None:
    if label(path) in DOORS:
        return
    parts = path.relative_to(ROOT).with_suffix("").parts
    here = floor_of(parts)
    assert here is not None
    wrong = []
    for name, line in imported(ast.parse(path.read_text("utf-8"))):
        if name.partition(".")[0] != parts[0]:
            continue
        there = floor_of(tuple(name.split(".")))
        assert there is not None
        if there[0] != here[0] and there[1] >= here[1]:
            wrong.append(f"line {line}: {name}")
    assert not wrong, f"{label(path)} is in the room {here[0]!r} and imports from the same or a higher floor: {wrong}"


def test_every_folder_is_a_room() -> None:
    for package, floors in FLOORS.items():
        folders = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")} - {"models"}
        assert folders == {room for floor in floors for room in floor} - {"."}


def test_contributing_lists_the_rooms_by_floor() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed = [(int(floor), room) for floor, room in re.findall(r"^\| (\d+) \| `([\w/]+)/` \|", text, re.MULTILINE)]
    assert listed == [
        (number, package if room == "." else f"{package}/{room}")
        for package, floors in FLOORS.items()
        for number, floor in enumerate(floors, start=1)
        for room in floor
    ]


@pytest.mark.parametrize("path", [p for p in MODULES if p.relative_to(ROOT).parts[0] in LIBRARIES], ids=label)
def test_library_code_neither_prints_nor_exits(path: Path) -> None:
    forbidden = {"print", "exit", "quit", "sys.exit", "os._exit", "sys.stdout.write", "sys.stderr.write"}
    # Not library code: the program that a child process runs. Its parent reads its pipes and its exit code.
    if path.name.endswith(("_main.py", "_child.py", "_agent.py")):
        forbidden -= {"sys.exit", "os._exit", "sys.stdout.write", "sys.stderr.write"}
    found = [
        f"line {node.lineno}: {ast.unparse(node.func)}"
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in forbidden
    ]
    assert not found, f"{label(path)}: {found}"


@pytest.mark.parametrize("path", sorted((ROOT / "compact_edge").rglob("*.py")), ids=label)
def test_the_front_door_imports_nothing_heavy_when_it_loads(path: Path) -> None:
    heavy = HEAVY & set(imported_at_load(ast.parse(path.read_text("utf-8")).body))
    assert not heavy, f"{label(path)} imports {sorted(heavy)} at its top: every --help would wait for it"


def test_every_package_is_covered() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert packages <= set(MAY_IMPORT)
    assert len(MODULES) > len(MAY_IMPORT)


def test_no_test_module_imports_another() -> None:
    """What several of them use is in a module without `test_`."""
    wrong = [
        f"{label(path)}, line {line}: {name}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for name, line in imported(ast.parse(path.read_text("utf-8")))
        if name.startswith("tests.") and name.rpartition(".")[2].startswith("test_")
    ]
    assert wrong == []
