"""The methods of pruning, by name: everything that differs between them.

A method scores the FFN channels, and may change the weights of what stays. Commands, plans and reports read this
registry, so a new method is one `register` call here. This module imports nothing heavy: the command line reads it
for `--help`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from compact.base.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from compact.calibration.calibration_set import Calibration
    from compact.pruning.context import Context
    from compact.pruning.plan import PrunePlan


class ChannelScores(Protocol):
    """How much each FFN channel matters, at several vocabulary sizes."""

    def at(self, vocab_size: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Scores [num_hidden_layers, channels] for V' = `vocab_size`; the higher, the more a channel matters."""
        ...


# Changes the weights of what a plan keeps: the new plan, and the file with the changed tensors.
Adapt: TypeAlias = "Callable[[Context, PrunePlan, Calibration], tuple[PrunePlan, Path | None]]"


@dataclass(frozen=True)
class Method:
    """One method of pruning.

    Attributes:
        name: as `--method` and `plan.json` have it.
        score: gives the scores of the FFN channels, from the context, the calibration (None unless `needs_calibration`)
            and V' (None: every V' on the grid of `compact.pruning.importance.vocabulary_grid`).
        needs_calibration: whether `score` or `adapt` reads calibration text.
        needs_held_out: whether some of that text must be kept out of the calibration set, for `adapt` to choose on.
        is_seeded: whether `--seed` changes the scores by itself.
        channels_of: the method whose channels it keeps, where that is another one.
        adapt: changes the weights of what stays; gives the plan and its `updates.safetensors`, or no file if nothing
            is changed. A function, or `module:function` for one that is imported when it is needed. None if the
            weights stay as they are.
        help: what `--help` says of it; empty for a method that is there for comparison.
        cut, cut_in_card: what cut the model, in a file's own description and in the model card; empty takes words with
            `name` in them.
        adapted, adapted_in_card: what `adapt` did, likewise.
        options: names of the `PruneOptions` that only this method reads.
        advice: why to choose it over `channels_of`, for the summary.
    """

    name: str
    score: Callable[[Context, Calibration | None, int | None], ChannelScores]
    needs_calibration: bool = False
    needs_held_out: bool = False
    is_seeded: bool = False
    channels_of: str | None = None
    adapt: Adapt | str | None = None
    help: str = ""
    cut: str = ""
    cut_in_card: str = ""
    adapted: str = ""
    adapted_in_card: str = ""
    options: tuple[str, ...] = ()
    advice: str = ""

    @property
    def cut_words(self) -> tuple[str, str]:
        """What cut the model: for a file's own description, and for the model card."""
        return (
            self.cut or f"COMPACT with channels by {self.name}",
            self.cut_in_card or f"rare vocabulary, and FFN channels by {self.name}",
        )

    @property
    def adapter(self) -> Adapt | None:
        """The function that `adapt` names."""
        if not isinstance(self.adapt, str):
            return self.adapt
        module, _, name = self.adapt.partition(":")
        found: Adapt = getattr(import_module(module), name)
        return found

    @property
    def channels(self) -> str:
        """Name of the method that chooses the channels."""
        return self.channels_of or self.name


METHODS: dict[str, Method] = {}
DEFAULT_METHOD = "compact"


def register(method: Method) -> Method:
    """Make a method known under its name. Raises ValueError for a name that is taken."""
    if method.name in METHODS:
        raise ValueError(f"method {method.name!r} is registered already")
    METHODS[method.name] = method
    return method


def method_named(name: str) -> Method:
    """The method of a name. Raises UsageError where there is none."""
    if name not in METHODS:
        raise UsageError(f"--method {name!r}: unknown", f"one of: {', '.join(METHODS)}")
    return METHODS[name]


def method_of_plan(name: str) -> Method:
    """The method that a plan names. One that is not registered here has no words but its name, and no scores."""
    return METHODS.get(name) or Method(name, _not_registered)


def methods_help() -> str:
    """The help text of `--method`."""
    described = " ".join(f"{method.name}: {method.help}." for method in METHODS.values() if method.help)
    return f"{described} The others are for comparison."


def _not_registered(context: Context, calibration: Calibration | None, vocab_size: int | None) -> ChannelScores:
    del calibration, vocab_size
    raise UsageError(f"--method {context.options.method!r}: unknown", f"one of: {', '.join(METHODS)}")


def _common_act2(context: Context, calibration: Calibration | None, vocab_size: int | None) -> ChannelScores:
    from compact.pruning.channel_scores import act2_scores

    assert calibration is not None
    return act2_scores(context, calibration, vocab_size)


def _weight_norms(context: Context, calibration: Calibration | None, vocab_size: int | None) -> ChannelScores:
    from compact.pruning.channel_scores import magnitude_scores

    del calibration, vocab_size
    return magnitude_scores(context.source)


def _chance(context: Context, calibration: Calibration | None, vocab_size: int | None) -> ChannelScores:
    from compact.pruning.channel_scores import random_scores

    del calibration, vocab_size
    return random_scores(context.source, context.options.seed)


COMPACT = register(
    Method(
        DEFAULT_METHOD,
        _common_act2,
        needs_calibration=True,
        help="as in the paper, weights unchanged",
        cut="COMPACT (arXiv 2509.06836)",
        cut_in_card="COMPACT, arXiv 2509.06836 (rare vocabulary and FFN channels)",
    )
)
REPAIR = register(
    replace(
        COMPACT,
        name="repair",
        channels_of=COMPACT.name,
        needs_held_out=True,
        adapt="compact.repair.run:repair",
        help="the same channels, and every down_proj fitted to its original output on the calibration text",
        adapted="repaired by least squares",
        adapted_in_card="`down_proj` fitted to the original's outputs by least squares",
        options=("repair_tokens",),
        advice="recommended: fits the kept channels to the original, without training",
    )
)
register(Method("magnitude", _weight_norms))
register(Method("random", _chance, is_seeded=True))
