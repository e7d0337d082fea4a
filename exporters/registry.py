"""The export formats: our own, and those of other packages.

A package adds a format with an entry point of the group `compact_edge.formats`. The name of the entry point is the name
of the format. Its value is the class, such as `my_package.format:MyFormat` (see `exporters.base.Format`).
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points

from compact.base.errors import ToolUnavailableError, UsageError
from exporters.base import Format

GROUP = "compact_edge.formats"
_OURS = {
    "gguf": "exporters.gguf.format:GgufFormat",
    "onnx": "exporters.onnx.format:OnnxFormat",
}


@cache
def _table() -> dict[str, EntryPoint]:
    """Return the entry points by format name. Our own come first, and no package can replace them."""
    table = {name: EntryPoint(name, place, GROUP) for name, place in _OURS.items()}
    for entry in entry_points(group=GROUP):
        table.setdefault(entry.name, entry)
    return table


def names() -> tuple[str, ...]:
    """Return the names of all formats."""
    return tuple(_table())


@cache
def format_named(name: str) -> type[Format]:
    """Return the class of a format.

    Raises:
        UsageError: the format is unknown.
        ToolUnavailableError: its package cannot be loaded.
    """
    entry = _table().get(name)
    if entry is None:
        raise UsageError(f"no format named {name[:60]!r}", f"one of: {', '.join(names())}")
    try:
        found = entry.load()
    except (ImportError, AttributeError) as error:
        raise ToolUnavailableError(
            f"the format {name} cannot be loaded from {entry.value}: {error}", "update or uninstall its package"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Format) and found.name == name):
        raise ToolUnavailableError(f"{entry.value} is not a format named {name}", "update or uninstall its package")
    return found


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
