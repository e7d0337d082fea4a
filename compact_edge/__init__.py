"""Prune a language model, export it and measure it: five functions with the flags of the commands as keywords.

    from compact_edge import build, evaluate, export, open_model, prune

`import compact_edge` imports nothing heavy. A function imports what it needs when it is called. `compact_edge.build` is
also the package of the build's modules, so that module is callable.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from compact_edge.version import __version__

if TYPE_CHECKING:
    from compact_edge.cli.api import build, evaluate, export, open_model, prune

__all__ = ["__version__", "build", "evaluate", "export", "open_model", "prune"]

_API = "compact_edge.cli.api"


class _CallableModule(ModuleType):
    """`compact_edge.build`: the package, and when it is called, the function of this name."""

    def __call__(self, *args: Any, **flags: Any) -> Any:
        """See `compact_edge.cli.api.build`."""
        return import_module(_API).build(*args, **flags)


# Python sets the attribute `build` to the package as soon as one of its modules is imported, so `__getattr__` cannot
# return the function. A module may have a class of its own (Python's language reference, section 3.3.2.1).
import_module("compact_edge.build").__class__ = _CallableModule


def __getattr__(name: str) -> Any:
    """Import the functions when they are first used."""
    if name in __all__:
        return getattr(import_module(_API), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
