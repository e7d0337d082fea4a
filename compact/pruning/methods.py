"""The registry of pruning methods.

A method scores the FFN channels. It may also change the weights that stay. Commands, plans and reports read this
registry, so a new method only needs a `register` call here. The command line reads this module for `--help`, so it must
not import heavy packages.
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
    """The importance of each FFN channel at several vocabulary sizes."""

    def at(self, vocab_size: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the scores [num_hidden_layers, channels] for V' = `vocab_size`. Higher is more important."""
        ...


# Changes weights that a plan keeps. Returns the new plan, and the file of changed tensors or None.
Adapt: TypeAlias = "Callable[[Context, PrunePlan, Calibration], tuple[PrunePlan, Path | None]]"


@dataclass(frozen=True)
class Method:
    """One pruning method.

    Attributes:
        name: the name in `--method` and `plan.json`.
        score: computes the scores of the FFN channels. Its arguments are the context, the calibration (None unless
            `needs_calibration`) and V' (None for every V' on the grid of `compact.pruning.importance.vocabulary_grid`).
        needs_calibration: whether `score` or `adapt` reads calibration text.
        needs_held_out: whether `adapt` needs text that is not in the calibration sequences.
        is_seeded: whether `--seed` affects the scores directly.
        channels_of: name of another method whose channels this method keeps, or None.
        adapt: changes weights that stay. It returns the plan and its `updates.safetensors`, or None for the file if
            nothing changed. This is a function, or `module:function` for a function that is imported on first use.
            It is None if the method does not change weights.
        help: description for `--help`. Empty for methods that only exist for comparison.
        cut, cut_in_card: how the model was pruned, for the file's own description and for the model card. If empty, a
            default text with `name` is used.
        adapted, adapted_in_card: what `adapt` did, for the same two places.
        options: names of the fields of `PruneOptions` that only this method reads.
        advice: why to prefer this method over `channels_of`, for the summary.
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
        """How the model was pruned: the text for the file's own description, and the text for the model card."""
        return (
            self.cut or f"COMPACT with channels by {self.name}",
            self.cut_in_card or f"rare vocabulary, and FFN channels by {self.name}",
        )

    @property
    def adapter(self) -> Adapt | None:
        """The function `adapt`, imported if necessary, or None if the method does not change weights."""
        if not isinstance(self.adapt, str):
            return self.adapt
        module, _, name = self.adapt.partition(":")
        found: Adapt = getattr(import_module(module), name)
        return found

    @property
    def channels(self) -> str:
        """The name of the method that selects the channels."""
        return self.channels_of or self.name


METHODS: dict[str, Method] = {}
DEFAULT_METHOD = "compact"


def register(method: Method) -> Method:
    """Add a method to the registry and return it. Raises ValueError if the name is taken."""
    if method.name in METHODS:
        raise ValueError(f"method {method.name!r} is already registered")
    METHODS[method.name] = method
    return method


def method_named(name: str) -> Method:
    """Return the method with a name. Raises UsageError if there is no such method."""
    if name not in METHODS:
        raise UsageError(f"--method {name!r}: unknown", f"one of: {', '.join(METHODS)}")
    return METHODS[name]


def method_of_plan(name: str) -> Method:
    """Return the method that a plan names.

    If the method is not registered, return one with default texts. Its `score` raises UsageError.
    """
    return METHODS.get(name) or Method(name, _not_registered)


def methods_help() -> str:
    """Return the help text of `--method`."""
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
        help="prune as in the paper; kept weights do not change",
        cut="COMPACT (arXiv 2509.06836)",
        cut_in_card="COMPACT, arXiv 2509.06836 (rare vocabulary and FFN channels)",
    )
)
register(
    replace(
        COMPACT,
        name="repair",
        channels_of=COMPACT.name,
        needs_held_out=True,
        adapt="compact.repair.run:repair",
        help="keep the same channels, and fit every down_proj to its original output on the calibration text",
        adapted="repaired by least squares",
        adapted_in_card="`down_proj` fitted to the original's outputs by least squares",
        options=("repair_tokens",),
        advice="recommended: fits the kept channels to the original, without training",
    )
)
register(Method("magnitude", _weight_norms))
register(Method("random", _chance, is_seeded=True))
