"""A model of the loss of a cut: what dropped tokens, dropped channels and quantization cost.

The loss of an artifact is ln(bits per byte / the unpruned float model's), averaged over texts. The model adds three
terms:

- vocabulary: by the number of extra tokens per token of the text. A dropped token is written in several pieces.
- FFN: by the share of act² energy that the dropped channels had (`compact.pruning.importance`).
- quantization: linear in the mean relative errors of the body's matrices and of the embedding
  (`compact_edge.front.type_losses`).

Each term is fitted to measured points of the same model. The terms are added, because the logarithms of the losses
of independent changes add up. docs/front.md compares predictions with measurements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

# An exponent outside of the limits comes from noise.
EXPONENTS = (0.7, 2.5)


@dataclass(frozen=True)
class PowerLaw:
    """loss = scale * x ** exponent, and 0 for x = 0."""

    scale: float
    exponent: float

    def at(self, x: float) -> float:
        """Return the loss at `x`, which must not be negative."""
        return self.scale * x**self.exponent if x > 0 else 0.0


def fit_power_law(
    points: Sequence[tuple[float, float]], default_exponent: float, limits: tuple[float, float] = EXPONENTS
) -> PowerLaw:
    """Fit a power law to points (x, loss).

    The larger of two losses is known with a smaller relative error, so the law goes through the point with the largest
    loss. The other points only determine the exponent. Points without a positive loss determine nothing: they are
    within the noise.

    Args:
        points: measured points with x > 0.
        default_exponent: the exponent if only one point has a positive loss.
        limits: smallest and largest exponent.
    """
    useful = [(x, loss) for x, loss in points if x > 0 and loss > 0]
    if not useful:
        return PowerLaw(0.0, default_exponent)
    x0, y0 = max(useful, key=lambda point: point[1])
    slopes = [math.log(y0 / y) / math.log(x0 / x) for x, y in useful if x < x0 and y < y0]
    exponent = sum(slopes) / len(slopes) if slopes else default_exponent
    exponent = min(max(exponent, limits[0]), limits[1])
    return PowerLaw(y0 / x0**exponent, exponent)


@dataclass(frozen=True)
class LossLaw:
    """Power laws from one measured point to the next, and beyond the first and the last one.

    Attributes:
        points: measured points (x, loss), both ascending.
        below: the law for x below the first point.
        above: the law for x above the last point.
    """

    points: tuple[tuple[float, float], ...]
    below: PowerLaw
    above: PowerLaw

    def at(self, x: float) -> float:
        """Return the loss at `x`, which must not be negative."""
        if not self.points or x <= self.points[0][0]:
            return self.below.at(x)
        for (x0, y0), (x1, y1) in pairwise(self.points):
            if x <= x1:
                share = math.log(x / x0) / math.log(x1 / x0)
                between: float = y0 * (y1 / y0) ** share
                return between
        return self.above.at(x)


def fit_law(
    points: Sequence[tuple[float, float]], default_exponent: float, limits: tuple[float, float] = EXPONENTS
) -> LossLaw:
    """Join measured points (x, loss) by power laws.

    A point whose loss is not below that of the next larger x is left out, because it is within the noise.

    Args:
        points: measured points.
        default_exponent, limits: of the laws beyond the points, as in `fit_power_law`.
    """
    kept: list[tuple[float, float]] = []
    for x, loss in sorted(points, reverse=True):
        if x > 0 and loss > 0 and (not kept or (x < kept[0][0] and loss < kept[0][1])):
            kept.insert(0, (x, loss))
    below = _through(kept[0], fit_power_law(kept[:2], default_exponent, limits)) if kept else PowerLaw(0.0, 1.0)
    above = fit_power_law(kept[-2:], default_exponent, limits)
    return LossLaw(tuple(kept), below, above)


def _through(point: tuple[float, float], law: PowerLaw) -> PowerLaw:
    """Return a law with the same exponent through a point."""
    x, loss = point
    return PowerLaw(loss / x**law.exponent, law.exponent)


def as_share(log_ratio: float) -> float:
    """Return a loss as a share: 0.03 for bits per byte that are 3% above the unpruned model's."""
    return math.expm1(log_ratio)
