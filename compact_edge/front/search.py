"""Search sizes and type together: predict thousands of candidates, then measure the best few.

1. Fit the losses of dropped tokens and channels (`compact.search.predictor`).
2. Measure some types on the unpruned model, to fit what an error of quantization costs.
3. Predict every candidate (`compact_edge.front.candidates`), and keep those within the limits.
4. Measure the best ones as real artifacts, in their own type. Each measurement corrects the predictions of its type.

Without `max_loss`, the best candidate has the smallest loss. With it, the best one is the smallest file.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import Any

from compact.base.errors import BudgetError
from compact.pruning.budget import Sizes, removed_parameters
from compact.pruning.context import Context
from compact.pruning.ranking import rank_vocabulary
from compact.search.find import Curve, curve_of
from compact.search.loss_model import as_share
from compact.search.predictor import Predictor
from compact.search.size_evaluator import TextScore, log_ratios
from compact_edge.front.candidates import (
    Candidate,
    SearchLimits,
    SearchType,
    StoredType,
    candidates_of,
    violations,
    within,
)
from compact_edge.front.trials import Trials
from compact_edge.front.type_losses import TypeLosses, fit_type_losses
from exporters.format_values import ArtifactSizes

# Artifacts that are measured after the prediction.
TRIALS = 6
# Artifacts that are measured at most, if none of the first ones is within the limits.
_MOST_TRIALS = 15
# Losses that differ by less than this are equal: the texts are short.
_NOISE = 0.0005
# Types whose best candidate is measured in the first round.
_FIRST_ROUND = 3


@dataclass(frozen=True)
class Measured:
    """A measured candidate.

    Attributes:
        candidate: sizes, type and predicted figures.
        texts: scores by text.
        loss: ln(bits per byte / the unpruned float model's), mean over the texts, corrected for other text
            (`Predictor.correction`).
        raw_loss: the same without the correction.
    """

    candidate: Candidate
    texts: Mapping[str, TextScore]
    loss: float
    raw_loss: float


@dataclass
class FrontSearch:
    """The state of a search for one format.

    Attributes:
        context: the model, the options and the calibration.
        curve: the grids of sizes.
        predictor: the losses of sizes.
        types: the types to compare.
        trials: makes and scores artifacts.
        limits: what the user asks for.
        type_losses: the losses of types, and the types that were measured for them.
        measured: results so far, by candidate.
    """

    context: Context
    curve: Curve
    predictor: Predictor
    types: list[StoredType]
    trials: Trials
    limits: SearchLimits
    type_losses: TypeLosses
    measured: dict[tuple[Sizes, str], Measured] = field(default_factory=dict)

    @cached_property
    def everything(self) -> list[Candidate]:
        """All candidates. The limits decide which figures they have, so set them before."""
        return candidates_of(self.types, self.curve, self.predictor, self.limits)

    def loss_of(self, candidate: Candidate) -> float:
        """Return the measured loss of a candidate, or its predicted loss with the corrections so far."""
        if candidate.key in self.measured:
            return self.measured[candidate.key].loss
        return candidate.loss + self._correction(candidate)

    def meets_limits(self, candidate: Candidate) -> bool:
        """Return whether a candidate is within all limits, as far as is known."""
        return within(candidate, self.limits, loss=self.loss_of(candidate))

    def _correction(self, candidate: Candidate) -> float:
        """Return the mean error of the predictions of a type, or of all types if this one has no measurement.

        Cuts correct only cuts: errors of their predictions say nothing about the unpruned model in a type.
        """
        whole = self.predictor.whole
        is_cut = candidate.sizes != whole
        errors = {k: one.loss - one.candidate.loss for k, one in self.measured.items() if (k[0] != whole) == is_cut}
        same = [error for (_, name), error in errors.items() if name == candidate.type.name]
        return fmean(same or errors.values()) if errors else 0.0

    def measure(self, candidate: Candidate) -> Measured:
        """Make and score a candidate."""
        texts = self.trials.score(candidate.sizes, candidate.type.search_type.format)
        raw = fmean(log_ratios(texts, self.predictor.unpruned.texts).values())
        found = Measured(candidate, texts, raw + self.predictor.correction(candidate.sizes, texts), raw)
        self.measured[candidate.key] = found
        return found


def objective(search: FrontSearch, candidate: Candidate) -> tuple[float, float]:
    """Return a sort key, smaller is better: bytes if the loss is limited, otherwise the loss."""
    loss = search.loss_of(candidate)
    if search.limits.max_loss is not None:
        return float(candidate.n_bytes), loss
    return round(loss / _NOISE) * _NOISE, float(candidate.n_bytes)


def start_search(
    context: Context,
    types: Sequence[SearchType],
    sizes_of: Mapping[str, ArtifactSizes],
    trials_for: Any,
    limits: SearchLimits,
) -> FrontSearch:
    """Fit the predictions: measure some sizes and some types.

    Args:
        context: the model, the options and the calibration, which must hold out text.
        types: the types to compare.
        sizes_of: predicts the figures of each type, by its name.
        trials_for: makes the `Trials` for texts.
        limits: what the user asks for.

    Raises:
        CompactEdgeError: an error of the predictor, or of making and scoring an artifact.
    """
    predictor = context.once(Predictor)
    curve = curve_of(context.source, context.once(rank_vocabulary), context.options)
    trials = trials_for(predictor.evaluator.texts)
    losses = fit_type_losses(types, trials, predictor, context.progress)
    stored = [StoredType(each, sizes_of[each.name], losses.at(each)) for each in types]
    return FrontSearch(context, curve, predictor, stored, trials, limits, losses)


def run_search(
    search: FrontSearch, *, minutes: float | None = None, trials: int = TRIALS, only: Sizes | None = None
) -> Measured:
    """Return the best measured candidate within the limits.

    Args:
        search: from `start_search`.
        minutes: time limit for the measurements. At least one candidate is measured.
        trials: number of candidates to measure.
        only: consider only this size.

    Raises:
        BudgetError: no candidate meets the limits. The message names the limit that excludes the others.
    """
    everything = search.everything
    if only is not None:
        everything = [each for each in everything if each.sizes == only]
        if not everything:
            raise BudgetError(
                f"no type of this format fits intermediate_size {only.intermediate_size}",
                "build the formats one after another",
            )
    started = time.monotonic()
    with search.context.progress.task("measuring artifacts", trials, "files") as task:
        for number in range(_MOST_TRIALS):
            chosen = _next(search, everything)
            late = minutes is not None and time.monotonic() - started > 60 * minutes
            enough = number >= trials or (late and search.measured)
            if chosen is None or (enough and good(search)):
                break
            search.measure(chosen)
            task.advance()
    found = good(search)
    if not found:
        raise unreachable(search, everything)
    return min(found, key=lambda one: objective(search, one.candidate))


def good(search: FrontSearch) -> list[Measured]:
    """Return the measured candidates within the limits."""
    return [one for one in search.measured.values() if search.meets_limits(one.candidate)]


def _next(search: FrontSearch, everything: Sequence[Candidate]) -> Candidate | None:
    """Return the candidate to measure next, or None if no other one is likely to be better."""
    feasible = [each for each in everything if search.meets_limits(each)]
    left = [each for each in feasible if each.key not in search.measured]
    if not left:
        return None
    if len(search.measured) < _FIRST_ROUND:
        # The best candidate of a type that is not measured yet: predictions of types differ more than those of sizes.
        tried = {name for _, name in search.measured}
        fresh = [each for each in left if each.type.name not in tried]
        return min(fresh or left, key=lambda each: objective(search, each))
    best = min(left, key=lambda each: objective(search, each))
    found = good(search)
    if found and min(objective(search, one.candidate) for one in found) <= objective(search, best):
        return None
    return best


def unreachable(search: FrontSearch, everything: Sequence[Candidate]) -> BudgetError:
    """Return the error for limits that no candidate meets."""
    limits = search.limits
    broken = {each.key: violations(each, limits, loss=search.loss_of(each)) for each in everything}
    names = sorted({name for found in broken.values() for name in found})
    alone = [name for name in names if all(name in found for found in broken.values())]
    if "--fit" in alone or names == ["--fit"]:
        least = min(everything, key=lambda each: each.n_bytes)
        return BudgetError(
            f"--fit {_mb(limits.fit_bytes or 0)}: not reachable, because the smallest file has {_mb(least.n_bytes)} "
            f"({least.type.name}, {_more(search.loss_of(least))} bits per byte)",
            "give a larger size",
        )
    if "--max-memory" in alone:
        least = min(everything, key=lambda each: each.memory or 0)
        return BudgetError(
            f"--max-memory {_mb(limits.memory_bytes or 0)}: not reachable, the smallest model needs "
            f"{_mb(least.memory or 0)} with a context of {limits.context_length}",
            "give a larger size, or choose a target with a shorter context",
        )
    if "--min-speed" in alone:
        fastest = max(everything, key=lambda each: each.characters_per_second or 0.0)
        return BudgetError(
            f"--min-speed: not reachable, the fastest model decodes {fastest.characters_per_second or 0:.1f} "
            f"characters/s ({fastest.tokens_per_second or 0:.1f} tokens/s) on this target",
            "give a lower speed",
        )
    if "--max-loss" in alone:
        least = min(everything, key=search.loss_of)
        return BudgetError(
            f"--max-loss {limits.max_loss or 0:.1%}: not reachable, the best file loses "
            f"{_percent(search.loss_of(least))}",
            "give a larger loss",
        )
    # Each limit can be met alone. Name the one whose removal helps most.
    others = {name: [each for each in everything if set(broken[each.key]) <= {name}] for name in names}
    binding = next((name for name in names if others[name]), names[0])
    near = min(others[binding] or everything, key=lambda each: (each.n_bytes, search.loss_of(each)))
    rest = " and ".join(name for name in names if name != binding)
    return BudgetError(
        f"{binding} cannot be met together with {rest}: the nearest file has {_mb(near.n_bytes)} and "
        f"{_more(search.loss_of(near))} bits per byte",
        f"relax {binding}, or one of the others",
    )


def n_params_of(search: FrontSearch, sizes: Sizes) -> int:
    """Return the number of parameters after pruning to these sizes."""
    parts = search.curve.parts
    return parts.total - removed_parameters(sizes, parts, search.curve.limits)


def _mb(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f} MB"


def _more(log_loss: float) -> str:
    """Return how much more a file loses, in words if the prediction is far beyond what was measured."""
    return "many times the" if as_share(log_loss) > 5 else f"{_percent(log_loss)} more"


def _percent(log_loss: float) -> str:
    return f"{as_share(log_loss):.1%}"
