"""Text that every machine with CPython has: the source and documentation of the standard library.

It needs no download, and has the licence of the interpreter (PSF-2.0). It can be used to train a small model, calibrate
a pruning run or test a tokenizer. This module finds the text, splits it and returns it as documents:

* *code*: the source of each pure-Python module;
* *prose*: the language reference topics of ``help()`` (``pydoc_data.topics``) and the modules' docstrings.

Nothing is imported or executed: sources are read as text and docstrings come from the syntax tree.

The text differs between Python versions and builds. Some distributions leave out ``tkinter``, ``idlelib`` or
``ensurepip``. Within one installation, the text and its order are always the same. Only compare results of runs on the
same version.

Left out on purpose:

* test suites (``test``, ``tests``, ``idle_test``), which quote the modules they test and would leak held-out text;
* character tables of ``encodings`` and the build's own ``_sysconfigdata``, which are data;
* ``pydoc_data``, whose source is prose in a dictionary and is returned as prose;
* everything that is not the standard library, such as ``site-packages``.
"""

from __future__ import annotations

import ast
import hashlib
import sys
import sysconfig
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

__all__ = [
    "Docstring",
    "Module",
    "Source",
    "Split",
    "apart",
    "code",
    "docstrings",
    "documents",
    "held_out",
    "modules",
    "prose",
    "take",
]

Split = Literal["train", "held_out"]
Source = Literal["stdlib", "stdlib-prose"]

_HELD_OUT_PERCENT = 5
_SKIPPED_DIRECTORIES = frozenset({"__pycache__", "idle_test", "pydoc_data", "site-packages", "test", "tests"})
_TOPICS_MODULE = "pydoc_data.topics"


@dataclass(frozen=True, order=True)
class Module:
    """A module of the standard library, with its dotted name and source file."""

    name: str
    path: Path

    def read(self) -> str:
        """Return the source as text, with the encoding that the file declares and Unix line endings."""
        with tokenize.open(self.path) as file:
            return file.read()


@dataclass(frozen=True)
class Docstring:
    """The docstring of a module, class or function, with its dotted name."""

    name: str
    text: str


@cache
def modules() -> tuple[Module, ...]:
    """Return the pure-Python modules of this interpreter's standard library, sorted by dotted name.

    Raises:
        FileNotFoundError: the interpreter has no source files, as in the zipped Windows distribution.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found = sorted(_walk(root, ()))
    if not found:
        raise FileNotFoundError(
            f"No standard library sources in {root}: this Python was installed without them. "
            "Use a regular CPython installation, or give your own text."
        )
    return tuple(found)


def held_out(module_name: str) -> bool:
    """Tell whether a module belongs to the 5% kept for evaluation.

    The choice depends only on the dotted name, so it is the same on all Python versions and machines.
    """
    return int.from_bytes(_digest(module_name)[:8], "big") % 100 < _HELD_OUT_PERCENT


def code(split: Split) -> Iterator[str]:
    """Yield the source of each module of `split`, one document per module.

    The order is fixed and scattered over the library (by a hash of the name), so the first documents are a fair sample
    of all. Files are read one at a time.
    """
    yield from (text for _, text in _named_code(split))


def _named_code(split: Split) -> Iterator[tuple[str, str]]:
    for module in _split_modules(split):
        source = module.read()
        if source.strip():
            yield module.name, source


def prose(split: Split) -> Iterator[str]:
    """Yield English text of `split`: each reference topic, and all docstrings of each module, as one document.

    Topics are split by their key, like modules by their name. The order is fixed and scattered, as for `code`.
    """
    yield from (text for _, text in _named_prose(split))


def _named_prose(split: Split) -> Iterator[tuple[str, str]]:
    topics = {f"{_TOPICS_MODULE}.{key}": text for key, text in _topics().items()}
    by_name = {module.name: module for module in modules()}
    names = [name for name in (*topics, *by_name) if _belongs(name, split)]
    for name in sorted(names, key=_digest):
        if name in topics:
            text = topics[name].strip()
        else:
            text = "\n\n".join(docstring.text for docstring in _module_docstrings(by_name[name]))
        if text:
            yield name, text + "\n"


def apart(characters: int) -> tuple[list[str], Iterator[str]]:
    """Split `documents("stdlib")` into texts to evaluate on and the rest.

    The two parts have no module or topic in common. A module's docstrings are both in its source and in its prose, so
    both are in the same part.

    Args:
        characters: approximate size of the first part, half code and half prose. None of its documents is longer than a
            quarter of this.
    """
    names: set[str] = set()
    first: list[str] = []
    for texts in (_named_code("train"), _named_prose("train")):
        room = characters // 2
        for name, text in texts:
            if room <= 0:
                break
            if name not in names and characters // 32 <= len(text) <= characters // 4:
                names.add(name)
                first.append(text)
                room -= len(text)
    code_left, prose_left = (
        (text for name, text in texts if name not in names) for texts in (_named_code("train"), _named_prose("train"))
    )
    return first, _alternate(code_left, prose_left)


def docstrings(split: Split) -> Iterator[Docstring]:
    """Yield every docstring of the modules of `split`, with the name of the object that it describes."""
    for module in _split_modules(split):
        yield from _module_docstrings(module)


def documents(source: Source, split: Split = "train") -> Iterator[str]:
    """Yield documents of a named text: ``stdlib`` alternates code and prose, ``stdlib-prose`` is only prose.

    Raises:
        ValueError: `source` is unknown.
    """
    if source == "stdlib":
        return _alternate(code(split), prose(split))
    if source == "stdlib-prose":
        return prose(split)
    raise ValueError(f"Unknown text {source!r}: use 'stdlib' or 'stdlib-prose'.")


def take(texts: Iterable[str], characters: int) -> Iterator[str]:
    """Yield whole documents until they have at least `characters` characters in total."""
    remaining = characters
    if remaining <= 0:
        return
    for text in texts:
        yield text
        remaining -= len(text)
        if remaining <= 0:
            return


def _digest(name: str) -> bytes:
    """Hash a name the same way in every process, unlike the built-in `hash`."""
    return hashlib.sha256(name.encode()).digest()


def _belongs(name: str, split: Split) -> bool:
    """Tell whether the text `name` is in `split`. Raises ValueError for an unknown split."""
    if split not in ("train", "held_out"):
        raise ValueError(f"Unknown split {split!r}: use 'train' or 'held_out'.")
    return held_out(name) == (split == "held_out")


def _split_modules(split: Split) -> list[Module]:
    """Return the modules of `split` in scattered order."""
    chosen = [module for module in modules() if _belongs(module.name, split)]
    return sorted(chosen, key=lambda module: _digest(module.name))


def _walk(directory: Path, package: tuple[str, ...]) -> Iterator[Module]:
    """Find the modules in `directory`, which is the package with the name parts `package`."""
    for path in directory.iterdir():
        if path.is_dir():
            # Directories that cannot be imported (lib-dynload, config-3.11-x86_64-linux-gnu) hold no modules.
            wanted = path.name.isidentifier() and path.name not in _SKIPPED_DIRECTORIES
            if wanted and (package or path.name in sys.stdlib_module_names):
                yield from _walk(path, (*package, path.name))
        elif path.suffix == ".py" and path.stem.isidentifier():
            parts = package if path.stem == "__init__" else (*package, path.stem)
            # The interpreter's list excludes files that a distribution or user added, such as sitecustomize.
            if parts and parts[0] in sys.stdlib_module_names:
                module = Module(".".join(parts), path)
                if not _is_data(module):
                    yield module


def _is_data(module: Module) -> bool:
    """Tell whether a module is a generated table."""
    if module.name.startswith("_sysconfigdata"):
        return True
    if module.name.startswith("encodings."):
        source = module.read()
        return "decoding_table" in source or "decoding_map" in source
    return False


@cache
def _topics() -> dict[str, str]:
    """Read the reference topics from their source. Empty if the distribution leaves them out."""
    path = Path(sysconfig.get_path("stdlib")) / "pydoc_data" / "topics.py"
    if not path.is_file():
        return {}
    for node in ast.parse(Module(_TOPICS_MODULE, path).read()).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            return {str(key): str(text) for key, text in ast.literal_eval(node.value).items()}
    return {}


@cache
def _module_docstrings(module: Module) -> tuple[Docstring, ...]:
    """Return the docstrings of a module and of all it defines, in source order.

    Parsing the whole library takes seconds and its docstrings are a few MB, so they are kept for the next caller.
    """
    return tuple(_docstrings(ast.parse(module.read()), module.name))


def _docstrings(node: ast.AST, name: str) -> Iterator[Docstring]:
    """Yield the docstrings of `node` and of definitions inside it. `name` is the innermost definition's dotted name."""
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        text = ast.get_docstring(node)
        if text:
            yield Docstring(name, text)
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _docstrings(child, f"{name}.{child.name}")
        elif isinstance(child, (ast.stmt, ast.ExceptHandler, ast.match_case)):
            # Definitions inside `if`, `try` and the like belong to the enclosing name.
            yield from _docstrings(child, name)


def _alternate(first: Iterator[str], second: Iterator[str]) -> Iterator[str]:
    """Yield from two iterators in turn, then the rest of the longer one."""
    queue = [first, second]
    while queue:
        current = queue.pop(0)
        try:
            text = next(current)
        except StopIteration:
            continue
        yield text
        queue.append(current)
