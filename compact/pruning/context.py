"""The context that all stages of a plan share: the model, the options, the cache and the progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from compact.base.cache import Cache
from compact.base.progress import SILENT, Progress
from compact.pruning.options import PruneOptions
from compact.sources.model_source import ModelSource

Value = TypeVar("Value")


@dataclass(frozen=True)
class Context:
    """One model with one set of options. It keeps values that several stages need.

    Example::

        context = Context(source, PruneOptions(ratio=0.2), cache)
        calibration = context.once(calibration_for)
        decision = decide(context)  # uses the same calibration

    Attributes:
        source: the checkpoint, already validated.
        options: the user's options.
        cache: stores the result of every stage.
        progress: receives the progress and the notes of every stage.
    """

    source: ModelSource
    options: PruneOptions
    cache: Cache
    progress: Progress = SILENT
    _values: dict[Callable[[Context], Any], Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def once(self, make: Callable[[Context], Value]) -> Value:
        """Return `make(context)`. `make` runs at the first call, and later calls return the same value."""
        if make not in self._values:
            self._values[make] = make(self)
        value: Value = self._values[make]
        return value

    def with_value(self, make: Callable[[Context], Value], value: Value) -> Context:
        """Return a copy of this context in which `once(make)` returns `value` without calling `make`."""
        changed = replace(self)
        changed._values.update({**self._values, make: value})
        return changed

    def with_options(self, options: PruneOptions) -> Context:
        """Return a copy with other options. The caller must make sure that the kept values do not depend on them."""
        changed = replace(self, options=options)
        changed._values.update(self._values)
        return changed
