"""The export formats: our own, and those of other packages.

A package adds a format with an entry point of the group `compact_edge.formats`. The name of the entry point is the name
of the format. Its value is the class, such as `my_package.format:MyFormat` (see `exporters.base.Format`).
"""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compact.base.errors import ToolUnavailableError, UsageError
from exporters.base import Format

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "compact_edge.formats"
_OURS = {
    "gguf": ("exporters.gguf.format", "GgufFormat"),
    "onnx": ("exporters.onnx.format", "OnnxFormat"),
}


@cache
def _others() -> dict[str, EntryPoint]:
    """Return the entry points of other packages by format name. No package can replace a format of ours."""
    # Importing importlib.metadata takes about 40 ms, for which the help of `build` and `export` would wait.
    if not _may_have_entries():
        return {}
    from importlib.metadata import entry_points

    table: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        if entry.name not in _OURS:
            table.setdefault(entry.name, entry)
    return table


def _may_have_entries() -> bool:
    """Return whether an installed package may have entry points of our group.

    The answer is False only if every package is a plain folder of metadata on `sys.path`, and none names the group.
    """
    finders = [finder for finder in sys.meta_path if hasattr(finder, "find_distributions")]
    if [getattr(finder, "__name__", "") for finder in finders] != ["PathFinder"]:
        return True
    return any(_names_group(Path(place)) for place in dict.fromkeys(sys.path))


def _names_group(place: Path) -> bool:
    """Return whether packages in an entry of `sys.path` name our group. For an archive, the answer is True."""
    try:
        entries = list(place.iterdir())
    except FileNotFoundError:
        return False
    except OSError:
        return True
    for entry in entries:
        kind = entry.suffix.lower()
        if kind == ".egg":
            return True
        if kind in (".dist-info", ".egg-info"):
            try:
                if GROUP.encode() in (entry / "entry_points.txt").read_bytes():
                    return True
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError:
                return True
    return False


def names() -> tuple[str, ...]:
    """Return the names of all formats, our own first."""
    return (*_OURS, *_others())


@cache
def format_named(name: str) -> type[Format]:
    """Return the class of a format.

    Raises:
        UsageError: the format is unknown.
        ToolUnavailableError: its package cannot be loaded.
    """
    if name not in _OURS and name not in _others():
        raise UsageError(f"no format named {name[:60]!r}", f"one of: {', '.join(names())}")
    place = ":".join(_OURS[name]) if name in _OURS else _others()[name].value
    try:
        found = _loaded(name)
    except (ImportError, AttributeError) as error:
        raise ToolUnavailableError(
            f"the format {name} cannot be loaded from {place}: {error}", "update or uninstall its package"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Format) and found.name == name):
        raise ToolUnavailableError(f"{place} is not a format named {name}", "update or uninstall its package")
    return found


def _loaded(name: str) -> Any:
    if name in _OURS:
        module, attribute = _OURS[name]
        return getattr(import_module(module), attribute)
    return _others()[name].load()


@cache
def formats() -> tuple[type[Format], ...]:
    """Return all classes, our own first.

    A format of another package is left out if it cannot be loaded. `format_named` then raises the reason.
    """
    found = []
    for name in names():
        try:
            found.append(format_named(name))
        except ToolUnavailableError:
            if name in _OURS:
                raise
    return tuple(found)


def format_of_runtime(runtime: str) -> type[Format]:
    """Return the class of the format that a profile's runtime opens. Raises KeyError for an unknown runtime."""
    return {each.runtime: each for each in reversed(formats())}[runtime]
