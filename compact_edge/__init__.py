"""Prune a language model, export it and measure it: five functions with the flags of the commands as keywords.

    from compact_edge import build, evaluate, export, open_model, prune

`import compact_edge` imports nothing heavy. A function imports what it needs when it is called.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from compact_edge.version import __version__

if TYPE_CHECKING:
    from compact_edge.cli.api import build, evaluate, export, open_model, prune

__all__ = ["__version__", "build", "evaluate", "export", "open_model", "prune"]

_API = "compact_edge.cli.api"


def __getattr__(name: str) -> Any:
    """Import the functions when they are first used."""
    if name in __all__:
        return getattr(import_module(_API), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
