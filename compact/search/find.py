"""How a budget is best shared between vocabulary and FFN, by measurement: `--split auto`.

The candidates are all sizes (V', I') on the grids that the budget allows, from a cut of the vocabulary alone to one of
the FFN alone. Some, evenly spread, are judged by bits per byte on text of every calibration source that the
calibration does not hold; then the neighbours of the best, at half the distance each time.

The best has the smallest mean, over the texts, of its bits per byte over the unpruned model's. Ratios, because texts
differ in how hard they are: a mean of bits per byte would be decided by the hardest text, where the same loss counts
for more bits. The mean, because a choice by the worst text alone would ignore all others.

Near the best sizes the curve is flat, and held-out text of some thousand tokens tells neighbours apart by chance as
much as by merit. So the choice is not the luckiest point, but the judged one that lies lowest on a parabola through all
points near the best.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from compact.base.errors import BudgetError, UsageError
from compact.pruning.budget import (
    DEFAULT_RATIO,
    TOLERANCE,
    Limits,
    Parts,
    Sizes,
    count_parts,
    inner_sizes,
    nearest_share,
    removed_parameters,
    vocabulary_share,
    wanted_parameters,
)
from compact.pruning.budget_options import AUTO, is_searched, parse_split
from compact.pruning.context import Context
from compact.pruning.importance import vocabulary_grid
from compact.pruning.options import PruneOptions
from compact.pruning.ranking import Ranking, rank_vocabulary
from compact.pruning.sizes import limits_of
from compact.search.size_evaluator import SizeEvaluator, SizeScore, TextScore
from compact.sources.model_source import ModelSource

# Sizes -> bytes of the artifact: exact, or at most a few bytes too many.
SizeOf = Callable[[Sizes], int]

# Sizes judged in all, and in the first round.
EVALUATIONS = 10
FIRST_ROUND = 6
# Points whose loss over the unpruned model is at most this many times the smallest one lie near the best, and a
# parabola goes through so many of them at least.
_NEAR = 1.5
_FEWEST_FOR_PARABOLA = 4
# Sizes I' that are looked at, at most; of the vocabulary 64 (`compact.pruning.importance.MAX_EDGES`).
_MOST_INNER_SIZES = 128


@dataclass(frozen=True)
class Point:
    """A judged size.

    Attributes:
        sizes: V' and I'.
        n_params: of the pruned model.
        n_bytes: of its artifact, where that is known.
        vocabulary_share: of the removed parameters, what the vocabulary gave.
        texts: what it scored on every text.
        ratios: its bits per byte over the unpruned model's, by text.
        excess: parameters that it removes, over those that a ratio asks for; 1 where the budget is in bytes.
    """

    sizes: Sizes
    n_params: int
    n_bytes: int | None
    vocabulary_share: float
    texts: Mapping[str, TextScore]
    ratios: Mapping[str, float]
    excess: float = 1.0

    @property
    def loss(self) -> float:
        """Mean of the ratios less 1, as if just what was asked for were removed.

        Sizes on the grids remove a little more or less than a ratio, and what removes less loses less.
        """
        return (self.mean - 1.0) / self.excess

    @property
    def mean(self) -> float:
        """Mean of the ratios."""
        return sum(self.ratios.values()) / len(self.ratios)

    @property
    def worst(self) -> float:
        """Largest of the ratios."""
        return max(self.ratios.values())


@dataclass(frozen=True)
class Found:
    """What a budget came to.

    Attributes:
        sizes: the sizes to prune to.
        record: how they were found, for the plan; None where nothing was judged.
    """

    sizes: Sizes
    record: dict[str, Any] | None


@dataclass(frozen=True)
class Curve:
    """The sizes that are looked at: where the parameters are, the limits, and V' and I' on their grids, ascending."""

    parts: Parts
    limits: Limits
    vocabulary: tuple[int, ...]

    @property
    def inner(self) -> list[int]:
        """Sizes I': the grid's, of a wide FFN every second or so, for a step of a 128th is fine enough."""
        sizes = inner_sizes(self.limits)
        step = -(-len(sizes) // _MOST_INNER_SIZES)
        return sizes[::-1][::step][::-1]

    def share(self, sizes: Sizes) -> float:
        """Of the removed parameters, the vocabulary's share."""
        return vocabulary_share(sizes, self.parts, self.limits)


def curve_of(source: ModelSource, ranking: Ranking, options: PruneOptions) -> Curve:
    """Raises BudgetError where no vocabulary size is the multiple that the options ask for."""
    # An explicit size would open the channel grid that a ratio keeps to.
    limits = limits_of(source, ranking, replace(options, vocab_size=None, intermediate_size=None))
    multiple = limits.vocab_multiple
    sizes = vocabulary_grid(limits.vocab_size, limits.smallest_vocab_size, multiple=multiple)
    if not sizes:
        raise BudgetError(
            f"--pad-vocab-to-multiple-of {multiple}: divides no vocabulary size that this model can have, "
            f"{limits.smallest_vocab_size} to {limits.vocab_size}",
            "give a smaller multiple",
        )
    return Curve(count_parts(source.tensors, source.config), limits, sizes)


def sizes_at_ratio(ratio: float, curve: Curve) -> list[Sizes]:
    """Sizes that remove `ratio` of all parameters within 0.5 points, the vocabulary alone first, the FFN alone last.

    Raises:
        BudgetError: the ratio is out of range or not reachable.
    """
    parts, limits = curve.parts, curve.limits
    wanted = wanted_parameters(ratio, parts, limits)
    found = []
    for inner in reversed(curve.inner):
        candidates = [Sizes(vocab, inner) for vocab in curve.vocabulary]
        errors = [abs(removed_parameters(sizes, parts, limits) - wanted) / parts.total for sizes in candidates]
        nearest = min(range(len(errors)), key=errors.__getitem__)
        if errors[nearest] <= TOLERANCE:
            found.append(candidates[nearest])
    if not found:
        raise BudgetError(
            f"--ratio {ratio:g}: no sizes on the grids come within {TOLERANCE:.1%} of it",
            "choose --vocab-size and --intermediate-size yourself",
        )
    return found


def sizes_within(fit_bytes: int, curve: Curve, size_of: SizeOf) -> list[Sizes]:
    """For every I' the largest V' whose artifact has at most `fit_bytes`, where a larger I' has none as large.

    Raises:
        BudgetError: even the smallest sizes have more, or the unpruned model has no more.
    """
    limits = curve.limits
    smallest = Sizes(curve.vocabulary[0], curve.inner[0])
    least, whole = size_of(smallest), size_of(Sizes(curve.vocabulary[-1], limits.intermediate_size))
    if least > fit_bytes:
        raise BudgetError(
            f"--fit {_megabytes(fit_bytes)}: not reachable, the smallest is {_megabytes(least)}",
            "ask for more, or choose a smaller --quant",
        )
    if whole <= fit_bytes:
        raise BudgetError(
            f"--fit {_megabytes(fit_bytes)}: nothing needs to go, all of the model has {_megabytes(whole)}",
            "export it as it is, or ask for less",
        )
    found: list[Sizes] = []
    for inner in reversed(curve.inner):
        # The size grows with the vocabulary: the number of sizes that fit is where the next one is.
        low, high = 0, len(curve.vocabulary)
        while low < high:
            middle = (low + high) // 2
            fits = size_of(Sizes(curve.vocabulary[middle], inner)) <= fit_bytes
            low, high = (middle + 1, high) if fits else (low, middle)
        if low and (not found or curve.vocabulary[low - 1] > found[-1].vocab_size):
            found.append(Sizes(curve.vocabulary[low - 1], inner))
    return found


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.2f} MB"


def point_of(
    score: SizeScore, unpruned: SizeScore, curve: Curve, size_of: SizeOf | None, ratio: float | None = None
) -> Point:
    """A judged size beside the unpruned model; `ratio` is what was asked for, None for a budget in bytes."""
    sizes = score.sizes
    removed = removed_parameters(sizes, curve.parts, curve.limits)
    return Point(
        sizes,
        curve.parts.total - removed,
        None if size_of is None else size_of(sizes),
        curve.share(sizes),
        score.texts,
        {name: text.bits_per_byte / unpruned.texts[name].bits_per_byte for name, text in score.texts.items()},
        1.0 if ratio is None else removed / (ratio * curve.parts.total),
    )


def rank_key(point: Point) -> tuple[float, float]:
    """Smaller is better: the loss to four decimals, then the worst text."""
    return round(point.loss, 4), point.worst


def settle(points: Sequence[Point]) -> Point:
    """The judged point that lies lowest on the parabola (loss by vocabulary share) through those near the best.

    The best itself where too few are near it, or where they do not lie in a valley.
    """
    best = min(points, key=rank_key)
    near = [point for point in points if point.loss <= _NEAR * max(best.loss, 0.0)]
    if len(near) < _FEWEST_FOR_PARABOLA:
        return best
    parabola = np.polynomial.Polynomial.fit(
        [point.vocabulary_share for point in near], [point.loss for point in near], deg=2
    )
    if parabola.deriv(2)(0.0) <= 0:
        return best
    return min(near, key=lambda point: (float(parabola(point.vocabulary_share)), *rank_key(point)))


def best_along(
    candidates: Sequence[Sizes],
    evaluate: Callable[[Sizes], Point],
    *,
    evaluations: int = EVALUATIONS,
    first_round: int = FIRST_ROUND,
) -> list[Point]:
    """Score some of the candidates: evenly spread ones, then those halfway to the neighbours of the best one.

    Args:
        candidates: neighbours in the list are neighbours on the curve.
        evaluate: measures one.
        evaluations: at most as many in all.
        first_round: as many at first.

    Returns:
        What was judged, in the candidates' order.
    """
    last = len(candidates) - 1
    count = min(first_round, evaluations, len(candidates))
    points: dict[int, Point] = {}
    for number in range(count):
        at = round(number * last / max(1, count - 1))
        points[at] = evaluate(candidates[at])
    while len(points) < evaluations:
        best = min(points, key=lambda at: rank_key(points[at]))
        below = max((at for at in points if at < best), default=best)
        above = min((at for at in points if at > best), default=best)
        # The wider gap first, in case there is room for only one more.
        halves = [(best - below, (below + best) // 2), (above - best, (above + best + 1) // 2)]
        fresh = [at for _, at in sorted(halves, reverse=True) if at not in points]
        if not fresh:
            break
        for at in fresh[: evaluations - len(points)]:
            points[at] = evaluate(candidates[at])
    return [points[at] for at in sorted(points)]


def find_sizes(context: Context, *, size_of: SizeOf | None = None) -> Found:
    """The sizes that `--fit`, or `--ratio` with `--split auto`, comes to.

    Args:
        context: the checkpoint, the budget and how to split it. The calibration's held-out text decides; its sequences
            rank the channels. The cache keeps every figure.
        size_of: bytes of the artifact at given sizes, without which nothing can be fitted.

    Raises:
        BudgetError: the budget is not reachable.
        CalibrationError: no held-out text. UsageError: no `size_of`, or too little memory.
    """
    options = context.options
    curve = curve_of(context.source, context.once(rank_vocabulary), options)
    if options.fit_bytes is not None:
        if size_of is None:
            raise UsageError("--fit: the artifact's type is not known", "name one with --quant")
        candidates = sizes_within(options.fit_bytes, curve, size_of)
    else:
        candidates = sizes_at_ratio(_ratio_of(options) or DEFAULT_RATIO, curve)
    if not is_searched(options):
        split = parse_split(options.split or "")
        assert split != AUTO
        return Found(nearest_share(split, candidates, curve.parts, curve.limits), None)
    evaluator = SizeEvaluator(context)
    evaluator.prepare()
    count = min(EVALUATIONS, len(candidates))
    with context.progress.task("searching sizes", count + 1, "sizes") as task:
        unpruned = evaluator.at(evaluator.whole)
        task.advance()

        def measure(sizes: Sizes) -> Point:
            point = point_of(evaluator.at(sizes), unpruned, curve, size_of, _ratio_of(options))
            task.advance()
            return point

        points = best_along(candidates, measure)
    best = settle(points)
    n_bytes = None if size_of is None else size_of(evaluator.whole)
    return Found(best.sizes, _record(options, curve, points, best, unpruned, n_bytes=n_bytes, texts=evaluator.texts))


def _ratio_of(options: PruneOptions) -> float | None:
    """The ratio asked for, where the budget is one."""
    if options.fit_bytes is not None:
        return None
    return DEFAULT_RATIO if options.ratio is None else options.ratio


def _record(
    options: PruneOptions,
    curve: Curve,
    points: Sequence[Point],
    best: Point,
    unpruned: SizeScore,
    *,
    n_bytes: int | None,
    texts: Mapping[str, str],
) -> dict[str, Any]:
    return {
        "budget": {"ratio": _ratio_of(options), "fit_bytes": options.fit_bytes},
        "held_out_bytes": {name: len(text.encode("utf-8", "surrogatepass")) for name, text in texts.items()},
        "unpruned": {
            "vocab_size": curve.limits.vocab_size,
            "intermediate_size": curve.limits.intermediate_size,
            "parameters": curve.parts.total,
            "bytes": n_bytes,
            "bits_per_byte": {name: round(score.bits_per_byte, 4) for name, score in unpruned.texts.items()},
        },
        "points": [point_as_dict(point) for point in points],
        "chosen": points.index(best),
    }


def point_as_dict(point: Point) -> dict[str, Any]:
    """A point for a plan or a file: figures to four decimals, `bytes` None where it is not known."""
    return {
        "vocab_size": point.sizes.vocab_size,
        "intermediate_size": point.sizes.intermediate_size,
        "parameters": point.n_params,
        "bytes": point.n_bytes,
        "vocabulary_share": round(point.vocabulary_share, 4),
        "bits_per_byte": {name: round(score.bits_per_byte, 4) for name, score in point.texts.items()},
        "mean_ratio": round(point.mean, 4),
        "worst_ratio": round(point.worst, 4),
    }
