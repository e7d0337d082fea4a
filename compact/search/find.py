"""Find the best split of a budget between vocabulary and FFN by measurement (`--fit` and `--split auto`).

The candidates are the sizes (V', I') on the grids that use up the budget. They form a curve, from pruning only the
vocabulary to pruning only the FFN. Sizes are evaluated by bits per byte on held-out text of every calibration
source:

1. Evaluate some evenly spaced candidates.
2. Evaluate candidates between the best one and its evaluated neighbours. Repeat, halving the distance each time.
3. Choose the evaluated point that is best on a smooth curve.

Points are compared by the mean, over all texts, of the ratio of their bits per byte to the unpruned model's. Ratios are
used because some texts are harder than others. In a mean of bits per byte, the hardest text would dominate, because the
same relative loss costs it more bits. The mean is used because the worst ratio alone would ignore all other texts.

Near the best sizes, the curve is flat. The held-out text has only a few thousand tokens, so differences between
neighbours are partly noise. The choice is therefore not the best measured point. A parabola is fitted through all
points near the best one, and the evaluated point that is lowest on the parabola is chosen.
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
    Shares,
    Sizes,
    count_parts,
    inner_sizes,
    nearest_share,
    removed_parameters,
    vocabulary_share,
    wanted_parameters,
)
from compact.pruning.budget_options import is_searched, parse_split
from compact.pruning.context import Context
from compact.pruning.importance import vocabulary_grid
from compact.pruning.options import PruneOptions
from compact.pruning.ranking import Ranking, rank_vocabulary
from compact.pruning.sizes import limits_of
from compact.search.size_evaluator import SizeEvaluator, SizeScore, TextScore, text_bytes
from compact.sources.model_source import ModelSource

# Sizes -> bytes of the artifact. The result is exact or a few bytes too large.
SizeOf = Callable[[Sizes], int]

# Number of sizes to evaluate in total, and in the first round.
EVALUATIONS = 10
FIRST_ROUND = 6
# A point is near the best one if its loss is at most `_NEAR` times the smallest loss. The parabola needs at least
# `_FEWEST_FOR_PARABOLA` such points.
_NEAR = 1.5
_FEWEST_FOR_PARABOLA = 4
# Largest number of candidate sizes I'. For V', the limit is `compact.pruning.importance.MAX_EDGES`.
_MOST_INNER_SIZES = 128


@dataclass(frozen=True)
class Point:
    """An evaluated size.

    Attributes:
        sizes: V' and I'.
        n_params: number of parameters of the pruned model.
        n_bytes: size of its artifact in bytes, or None if unknown.
        vocabulary_share: the vocabulary's share of the removed parameters, 0 to 1.
        texts: scores by the name of the text.
        ratios: bits per byte divided by the unpruned model's, by the name of the text.
        excess: number of removed parameters divided by the number that the ratio asks for. 1 for a budget in bytes.
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
        """The mean of the ratios minus 1, scaled to the requested number of removed parameters.

        Sizes on the grids remove slightly more or fewer parameters than the ratio asks for. Without scaling, sizes that
        remove fewer would look better.
        """
        return (self.mean - 1.0) / self.excess

    @property
    def mean(self) -> float:
        """The mean of the ratios."""
        return sum(self.ratios.values()) / len(self.ratios)

    @property
    def worst(self) -> float:
        """The largest of the ratios."""
        return max(self.ratios.values())


@dataclass(frozen=True)
class Found:
    """The result of a search.

    Attributes:
        sizes: the sizes to prune to.
        record: how they were found, for the plan. None if nothing was evaluated.
    """

    sizes: Sizes
    record: dict[str, Any] | None


@dataclass(frozen=True)
class Curve:
    """The grids of candidate sizes.

    Attributes:
        parts: number of parameters in each part of the source.
        limits: constraints on the sizes.
        vocabulary: candidate sizes V', ascending.
    """

    parts: Parts
    limits: Limits
    vocabulary: tuple[int, ...]

    @property
    def inner(self) -> list[int]:
        """Candidate sizes I', ascending: at most 128 sizes on the grid. The largest one is always included."""
        sizes = inner_sizes(self.limits)
        step = -(-len(sizes) // _MOST_INNER_SIZES)
        return sizes[::-1][::step][::-1]

    def share(self, sizes: Sizes) -> float:
        """Return the vocabulary's share of the parameters that these sizes remove, 0 to 1."""
        return vocabulary_share(sizes, self.parts, self.limits)


def curve_of(source: ModelSource, ranking: Ranking, options: PruneOptions) -> Curve:
    """Return the candidate sizes for a source. Raises BudgetError if no V' is a multiple of the requested number."""
    # Ignore explicit sizes here, because they would turn off the coarser channel grid of a ratio.
    limits = limits_of(source, ranking, replace(options, vocab_size=None, intermediate_size=None))
    multiple = limits.vocab_multiple
    sizes = vocabulary_grid(limits.vocab_size, limits.smallest_vocab_size, multiple=multiple)
    if not sizes:
        raise BudgetError(
            f"--pad-vocab-to-multiple-of {multiple}: this model can have {limits.smallest_vocab_size} to "
            f"{limits.vocab_size} tokens, and this range contains no multiple of {multiple}",
            "give a smaller multiple",
        )
    return Curve(count_parts(source.tensors, source.config), limits, sizes)


def sizes_at_ratio(ratio: float, curve: Curve) -> list[Sizes]:
    """Return the candidates that remove `ratio` of all parameters, to within 0.5 percentage points.

    They are sorted by I', descending: from pruning only the vocabulary to pruning only the FFN.

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
            "set --vocab-size and --intermediate-size instead",
        )
    return found


def sizes_within(fit_bytes: int, curve: Curve, size_of: SizeOf) -> list[Sizes]:
    """Return, for every I', the largest V' whose artifact has at most `fit_bytes` bytes.

    Sizes are left out if a larger I' already allows the same V' or a larger one. The result is sorted by I',
    descending.

    Raises:
        BudgetError: the smallest sizes do not fit, or the unpruned model already fits.
    """
    limits = curve.limits
    smallest = Sizes(curve.vocabulary[0], curve.inner[0])
    least, whole = size_of(smallest), size_of(Sizes(curve.vocabulary[-1], limits.intermediate_size))
    if least > fit_bytes:
        raise BudgetError(
            f"--fit {_megabytes(fit_bytes)}: not reachable, because the smallest artifact has {_megabytes(least)}",
            "give a larger size, or choose a smaller --quant",
        )
    if whole <= fit_bytes:
        raise BudgetError(
            f"--fit {_megabytes(fit_bytes)}: the unpruned model already fits ({_megabytes(whole)})",
            "export it without pruning, or give a smaller size",
        )
    found: list[Sizes] = []
    for inner in reversed(curve.inner):
        # The artifact grows with V', so a binary search gives the number of vocabulary sizes that fit.
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
    """Compare the score of a size with the unpruned model's.

    Args:
        score: the score of the size.
        unpruned: the score of the unpruned model, on the same texts.
        curve: the candidate sizes.
        size_of: computes the size of the artifact in bytes, or None if unknown.
        ratio: the requested ratio, or None for a budget in bytes.
    """
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
    """Return a sort key (smaller is better): the loss to four decimals, then the ratio of the worst text."""
    return round(point.loss, 4), point.worst


def settle(points: Sequence[Point]) -> Point:
    """Choose the point near the best one that is lowest on a parabola fitted through them (loss by vocabulary share).

    Return the best measured point if fewer than four points are near it, or if the parabola has no minimum.
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
    """Evaluate evenly spaced candidates, then those halfway between the best one and its evaluated neighbours.

    Args:
        candidates: sizes in the order of the curve.
        evaluate: evaluates one candidate.
        evaluations: largest number of evaluations.
        first_round: number of evenly spaced candidates to start with.

    Returns:
        The evaluated points, in the order of the candidates.
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
        # Start with the wider gap, because only one more evaluation may be left.
        halves = [(best - below, (below + best) // 2), (above - best, (above + best + 1) // 2)]
        unmeasured = [at for _, at in sorted(halves, reverse=True) if at not in points]
        if not unmeasured:
            break
        for at in unmeasured[: evaluations - len(points)]:
            points[at] = evaluate(candidates[at])
    return [points[at] for at in sorted(points)]


def find_sizes(context: Context, *, size_of: SizeOf | None = None) -> Found:
    """Find the sizes for `--fit`, or for `--ratio` with `--split auto`.

    Args:
        context: the checkpoint, the budget and how to split it. Sizes are evaluated on the calibration's held-out text,
            and channels are ranked by its sequences. The cache stores every score.
        size_of: computes the size of the artifact in bytes. Required for `--fit`.

    Raises:
        BudgetError: the budget is not reachable.
        CalibrationError: the calibration has no held-out text.
        UsageError: `size_of` is required but None, or the model does not fit in memory twice.
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
        assert isinstance(split, Shares)
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
    """Return the requested ratio, or None for a budget in bytes."""
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
        "held_out_bytes": text_bytes(texts),
        "unpruned": {
            **size_as_dict(unpruned.sizes, curve.parts.total, n_bytes),
            "bits_per_byte": {name: round(score.bits_per_byte, 4) for name, score in unpruned.texts.items()},
        },
        "points": [point_as_dict(point) for point in points],
        "chosen": points.index(best),
    }


def size_as_dict(sizes: Sizes, n_params: int, n_bytes: int | None) -> dict[str, Any]:
    """Return a size as a JSON object."""
    return {
        "vocab_size": sizes.vocab_size,
        "intermediate_size": sizes.intermediate_size,
        "parameters": n_params,
        "bytes": n_bytes,
    }


def point_as_dict(point: Point) -> dict[str, Any]:
    """Return a point as a JSON object for a plan or a file. Scores are rounded to four decimals."""
    return {
        **size_as_dict(point.sizes, point.n_params, point.n_bytes),
        "vocabulary_share": round(point.vocabulary_share, 4),
        "bits_per_byte": {name: round(score.bits_per_byte, 4) for name, score in point.texts.items()},
        "mean_ratio": round(point.mean, 4),
        "worst_ratio": round(point.worst, 4),
    }
