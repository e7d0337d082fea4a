"""The export formats: one line for each of ours, and those that other packages bring.

A package brings a format by an entry point of the group `compact_edge.formats`: its name is the format's, its value
the class (`my_package.format:MyFormat`, see `exporters.base.Format`).
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
    """Where each class is, by the format's name: ours first, which no package replaces."""
    table = {name: EntryPoint(name, place, GROUP) for name, place in _OURS.items()}
    for entry in entry_points(group=GROUP):
        table.setdefault(entry.name, entry)
    return table


def names() -> tuple[str, ...]:
    """The names of the formats."""
    return tuple(_table())


@cache
def format_named(name: str) -> type[Format]:
    """The class of a format.

    Raises:
        UsageError: there is no such format.
        ToolUnavailableError: the package that brings it cannot be loaded.
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
    """All classes, ours first. A format of another package that cannot be loaded is left out; naming it says why."""
    found = []
    for name in names():
        try:
            found.append(format_named(name))
        except ToolUnavailableError:
            if name in _OURS:
                raise
    return tuple(found)


def format_of_runtime(runtime: str) -> type[Format]:
    """The class of the format that a profile's runtime opens. Raises KeyError for a runtime that is not known."""
    return {each.runtime: each for each in reversed(formats())}[runtime]
