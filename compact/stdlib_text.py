"""The text every machine with CPython has: the source and the documentation of its standard library.

Training a small model, calibrating a pruning run or testing a tokenizer needs text, and the standard library is text
that needs no download and no licence question beyond the interpreter's own (PSF-2.0). This module finds it, splits it
and hands it out as documents:

* *code*: the source of each pure-Python module;
* *prose*: the language reference topics behind ``help()`` (``pydoc_data.topics``) and the modules' docstrings.

Nothing is imported or executed: sources are read as text and docstrings come from the syntax tree.

The text differs between Python versions (and between builds: some distributions leave out ``tkinter``, ``idlelib`` or
``ensurepip``). Within one installation it is always the same, in the same order; compare figures only between runs on
the same version.

Left out on purpose:

* test suites (``test``, ``tests``, ``idle_test``), which quote the modules they test and would leak held-out text;
* character tables of ``encodings`` and the build's own ``_sysconfigdata``, which are data;
* ``pydoc_data``, whose source is prose in a dictionary and is handed out as prose;
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
    """One module of the standard library: its dotted name and its source file."""

    name: str
    path: Path

    def read(self) -> str:
        """Return the source as text, decoded as the file declares and with Unix line ends."""
        with tokenize.open(self.path) as file:
            return file.read()


@dataclass(frozen=True)
class Docstring:
    """The docstring of a module, class or function, with the dotted name a reader would look it up by."""

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

    The choice depends on the dotted name alone, so a module stays on its side across Python versions and machines.
    """
    return int.from_bytes(_digest(module_name)[:8], "big") % 100 < _HELD_OUT_PERCENT


def code(split: Split) -> Iterator[str]:
    """Yield the source of each module of `split`, one document per module.

    The order is fixed but scattered over the library (by a hash of the name), so that the first documents are a fair
    sample of all of them. Files are read one at a time: stopping early costs nothing.
    """
    yield from (text for _, text in _named_code(split))


def _named_code(split: Split) -> Iterator[tuple[str, str]]:
    for module in _split_modules(split):
        source = module.read()
        if source.strip():
            yield module.name, source


def prose(split: Split) -> Iterator[str]:
    """Yield English text of `split`: reference topics, and per module all its docstrings as one document.

    Topics are split by their key as modules are by their name. The order is fixed and scattered, as for `code`.
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
    """`documents("stdlib")` in two parts that share no module and no topic: texts to judge by, and the others.

    A module's docstrings stand in its source and in its prose, so the two go together.

    Args:
        characters: of the first part, half of them code and half prose, about; it has no document longer than a quarter
            of it.
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
    """Yield every docstring of the modules of `split` with the name of what it describes."""
    for module in _split_modules(split):
        yield from _module_docstrings(module)


def documents(source: Source, split: Split = "train") -> Iterator[str]:
    """Yield documents of a named text: ``stdlib`` is code and prose in turn, ``stdlib-prose`` is prose alone.

    Raises:
        ValueError: `source` names no text.
    """
    if source == "stdlib":
        return _alternate(code(split), prose(split))
    if source == "stdlib-prose":
        return prose(split)
    raise ValueError(f"Unknown text {source!r}: use 'stdlib' or 'stdlib-prose'.")


def take(texts: Iterable[str], characters: int) -> Iterator[str]:
    """Yield documents until they hold at least `characters` characters; the last one is kept whole."""
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
    """Tell whether the text called `name` is in `split`, and refuse an unknown split."""
    if split not in ("train", "held_out"):
        raise ValueError(f"Unknown split {split!r}: use 'train' or 'held_out'.")
    return held_out(name) == (split == "held_out")


def _split_modules(split: Split) -> list[Module]:
    """Return the modules of `split` in scattered order."""
    chosen = [module for module in modules() if _belongs(module.name, split)]
    return sorted(chosen, key=lambda module: _digest(module.name))


def _walk(directory: Path, package: tuple[str, ...]) -> Iterator[Module]:
    """Find the modules below `directory`, which is the package with the name parts `package`."""
    for path in directory.iterdir():
        if path.is_dir():
            # Directories that cannot be imported (lib-dynload, config-3.11-x86_64-linux-gnu) hold no modules.
            wanted = path.name.isidentifier() and path.name not in _SKIPPED_DIRECTORIES
            if wanted and (package or path.name in sys.stdlib_module_names):
                yield from _walk(path, (*package, path.name))
        elif path.suffix == ".py" and path.stem.isidentifier():
            parts = package if path.stem == "__init__" else (*package, path.stem)
            # The interpreter's own list keeps out files that a distribution or a user added, such as sitecustomize.
            if parts and parts[0] in sys.stdlib_module_names:
                module = Module(".".join(parts), path)
                if not _is_data(module):
                    yield module


def _is_data(module: Module) -> bool:
    """Tell whether a module is a generated table rather than something a person wrote."""
    if module.name.startswith("_sysconfigdata"):
        return True
    if module.name.startswith("encodings."):
        source = module.read()
        return "decoding_table" in source or "decoding_map" in source
    return False


@cache
def _topics() -> dict[str, str]:
    """Read the reference topics from their source; empty where the distribution leaves them out."""
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
    """Yield the docstring of `node` and those below it, `name` being the dotted name of the innermost definition."""
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
    """Yield from two iterators in turn, then what is left of the longer one."""
    queue = [first, second]
    while queue:
        current = queue.pop(0)
        try:
            text = next(current)
        except StopIteration:
            continue
        yield text
        queue.append(current)
