"""Measures the cost of model sizes: the best split at several ratios, and the Pareto front of all evaluated sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from compact.base.errors import BudgetError
from compact.pruning.budget import Sizes
from compact.pruning.context import Context
from compact.pruning.ranking import rank_vocabulary
from compact.search.find import Point, best_along, curve_of, point_as_dict, point_of, settle, sizes_at_ratio
from compact.search.size_evaluator import SizeEvaluator, SizeScore
from compact_edge.building.search_report import change, print_table
from compact_edge.terminal.plot import Panel, Series, document
from exporters.format_values import ArtifactSizes
from runtime_bench.report import svg

SCHEMA = "compact-edge/curve/1"
SMALLEST, LARGEST = 0.05, 0.5
# Sizes evaluated per ratio. The best splits of neighbouring ratios are similar, so fewer suffice than in a search.
_EVALUATIONS, _FIRST_ROUND = 6, 4


@dataclass(frozen=True)
class Cost:
    """One evaluated size.

    Attributes:
        ratio: ratio for which it was evaluated.
        point: its scores.
        speed: estimated characters/s relative to the unpruned model, from the bytes read per token.
        best: whether it is the best size of its ratio.
        on_front: whether no other size is both smaller and better.
    """

    ratio: float
    point: Point
    speed: float
    best: bool
    on_front: bool


@dataclass(frozen=True)
class SizeCurve:
    """All costs of one model, by size.

    Attributes:
        model: name of the model.
        quant: type of the artifact.
        unpruned: sizes and scores of the unpruned model, including `n_bytes`.
        costs: evaluated sizes, smallest file first.
        text_bytes: scored UTF-8 bytes of each text.
    """

    model: str
    quant: str
    unpruned: Point
    costs: tuple[Cost, ...]
    text_bytes: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values for curve.json and `--json`."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "quant": self.quant,
            "held_out_bytes": self.text_bytes,
            "unpruned": point_as_dict(self.unpruned),
            "points": [
                {
                    "ratio": cost.ratio,
                    **point_as_dict(cost.point),
                    "characters_per_second_ratio": round(cost.speed, 4),
                    "best": cost.best,
                    "pareto": cost.on_front,
                }
                for cost in self.costs
            ],
        }


def ratios_of(points: int) -> list[float]:
    """Return `points` evenly spaced ratios from 0.05 to 0.5."""
    step = (LARGEST - SMALLEST) / max(1, points - 1)
    return [round(SMALLEST + number * step, 4) for number in range(points)]


def measure_curve(context: Context, sizes: ArtifactSizes, quant: str, ratios: Sequence[float]) -> SizeCurve:
    """Evaluate sizes at every ratio. A ratio that the model cannot reach is left out with a note.

    Raises:
        BudgetError: the model cannot reach any of the ratios.
        CalibrationError: there is no held-out text.
        UsageError: there is not enough memory.
    """
    curve = curve_of(context.source, context.once(rank_vocabulary), context.options)
    candidates: dict[float, list[Sizes]] = {}
    for ratio in ratios:
        try:
            candidates[ratio] = sizes_at_ratio(ratio, curve)
        except BudgetError as error:
            if ratio == ratios[-1] and not candidates:
                raise
            context.progress.note(f"left out: {error.message}")
    evaluator = SizeEvaluator(context)
    evaluator.prepare()
    total = 1 + sum(min(_EVALUATIONS, len(found)) for found in candidates.values())
    with context.progress.task("measuring sizes", total, "sizes") as task:
        whole = evaluator.at(evaluator.whole)
        task.advance()

        def measure(at: Sizes, ratio: float) -> Point:
            point = point_of(evaluator.at(at), whole, curve, sizes.file_bytes, ratio)
            task.advance()
            return point

        found = {
            ratio: best_along(some, partial(measure, ratio=ratio), evaluations=_EVALUATIONS, first_round=_FIRST_ROUND)
            for ratio, some in candidates.items()
        }
    unpruned = point_of(whole, whole, curve, sizes.file_bytes)
    front = pareto([point for points in found.values() for point in points])
    costs = [
        Cost(ratio, point, _speed(point, whole, sizes), point is settle(points), point.sizes in front)
        for ratio, points in found.items()
        for point in points
    ]
    costs.sort(key=lambda cost: (cost.point.n_bytes or 0, cost.point.mean))
    text_bytes = {name: len(text.encode("utf-8", "surrogatepass")) for name, text in evaluator.texts.items()}
    return SizeCurve(context.source.name, quant, unpruned, tuple(costs), text_bytes)


def _speed(point: Point, whole: SizeScore, sizes: ArtifactSizes) -> float:
    """Estimate characters/s relative to the unpruned model.

    Decoding one token at a time is limited by memory bandwidth, so compare characters per byte of weights read.
    """

    def characters_per_token(judgement: SizeScore | Point) -> float:
        scores = judgement.texts.values()
        return sum(score.n_characters for score in scores) / sum(score.n_tokens for score in scores)

    more = characters_per_token(point) / characters_per_token(whole)
    return more * sizes.bytes_per_token(whole.sizes) / sizes.bytes_per_token(point.sizes)


def pareto(points: Sequence[Point]) -> set[Sizes]:
    """Return the sizes that no other size beats in both bytes and mean ratio."""
    front: set[Sizes] = set()
    best = float("inf")
    for point in sorted(points, key=lambda p: (p.n_bytes or 0, p.mean)):
        if point.mean < best:
            best = point.mean
            front.add(point.sizes)
    return front


def print_curve(curve: SizeCurve) -> None:
    """Print a table of the best size of every ratio to stdout."""
    names = list(curve.text_bytes)
    header = ["ratio", "vocab_size", "intermediate_size", "parameters", "file", *names]
    header += ["mean", "worst", "characters/s", "Pareto"]

    def cells(point: Point) -> list[str]:
        return [
            str(point.sizes.vocab_size),
            str(point.sizes.intermediate_size),
            f"{point.n_params / 1e6:.2f}M",
            f"{(point.n_bytes or 0) / 1e6:.2f} MB",
            *(f"{point.texts[name].bits_per_byte:.3f}" for name in names),
        ]

    rows = [["unpruned", *cells(curve.unpruned), "", "", "x1.00", ""]]
    for cost in sorted((cost for cost in curve.costs if cost.best), key=lambda cost: cost.ratio):
        point = cost.point
        mark = "yes" if cost.on_front else ""
        scores = [change(point.mean), change(point.worst), f"x{cost.speed:.2f}", mark]
        rows.append([f"{cost.ratio:g}", *cells(point), *scores])
    shown = ", ".join(f"{name} {n_bytes:,}" for name, n_bytes in curve.text_bytes.items())
    print_table(
        f"{curve.model}, {curve.quant}: what each size costs",
        header,
        rows,
        [
            f"bits per byte: measured before any repair and without the loss of {curve.quant}, on text that the "
            f"calibration does not contain ({shown} bytes)",
            "mean and worst: change of bits per byte against the unpruned model, over the texts",
            "characters/s: estimated from the bytes of weights read per token, and the characters per token",
            f"Pareto: none of the {len(curve.costs)} evaluated sizes is both smaller and better",
        ],
    )


def curve_svg(curve: SizeCurve) -> str:
    """Return the plot: loss by file size with the Pareto front, bits per byte of each text, and estimated speed."""

    def tip(cost: Cost) -> str:
        point = cost.point
        return (
            f"{point.sizes.vocab_size} / {point.sizes.intermediate_size}, {_mb(point):.1f} MB: "
            f"mean {change(point.mean)}, worst {change(point.worst)}, characters/s x{cost.speed:.2f}"
        )

    front = [cost for cost in curve.costs if cost.on_front]
    rest = [cost for cost in curve.costs if not cost.on_front]
    best = [cost for cost in curve.costs if cost.best]

    def loss(costs: Sequence[Cost], name: str, style: int, *, joined: bool) -> Series:
        points = tuple(svg.Point(_mb(cost.point), 100 * (cost.point.mean - 1)) for cost in costs)
        return Series(name, points, tuple(tip(cost) for cost in costs), style, joined=joined, hollow=not joined)

    whole = svg.Point(_mb(curve.unpruned), 0.0)
    series = [
        loss(front, "Pareto front: none is both smaller and better", 0, joined=True),
        *([loss(rest, "other sizes judged", 4, joined=False)] if rest else []),
        Series("unpruned", (whole,), (f"unpruned: {whole.x:.1f} MB",), 1, joined=False, hollow=True),
    ]
    labels = tuple((svg.Point(_mb(cost.point), 100 * (cost.point.mean - 1)), f"{cost.ratio:g}") for cost in best)
    x_label = f"MB, {curve.quant}"
    panels = [
        Panel(
            "Loss by file size (labels: best of each ratio)",
            x_label,
            "bits per byte, % above the unpruned model, mean of the texts",
            tuple(series),
            labels,
        ),
        Panel(
            "Each text, at the best size of each ratio",
            x_label,
            "bits per byte",
            tuple(_by_text(curve, best, name, number) for number, name in enumerate(curve.text_bytes)),
        ),
        Panel(
            "Estimated speed, at the best size of each ratio",
            x_label,
            "characters/s over the unpruned model's",
            (
                Series(
                    "from the bytes of weights that a token reads",
                    (*(svg.Point(_mb(cost.point), cost.speed) for cost in best), svg.Point(whole.x, 1.0)),
                    (*(tip(cost) for cost in best), "unpruned"),
                    0,
                ),
            ),
        ),
    ]
    listed = "; ".join(f"{_mb(cost.point):.1f} MB {change(cost.point.mean)}" for cost in front)
    title = f"{curve.model}, {curve.quant}: what each size costs"
    return document(panels, title, f"Pareto front of file size and mean loss in bits per byte: {listed}.")


def _by_text(curve: SizeCurve, best: Sequence[Cost], name: str, number: int) -> Series:
    points = [*(cost.point for cost in best), curve.unpruned]
    scores = [point.texts[name].bits_per_byte for point in points]
    return Series(
        name,
        tuple(svg.Point(_mb(point), score) for point, score in zip(points, scores, strict=True)),
        tuple(f"{_mb(point):.1f} MB: {score:.3f}" for point, score in zip(points, scores, strict=True)),
        number % 6,
    )


def _mb(point: Point) -> float:
    return (point.n_bytes or 0) / 1e6
