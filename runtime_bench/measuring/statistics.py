"""Medians, quantiles, and the ratio of paired measurements with a distribution-free interval.

The two sides are measured in pairs whose order alternates (AB BA AB ...). A slow change during the run (the device
warms up, a clock slows down) affects both sides of a pair almost equally, so most of it cancels in the ratio of the
pair. The remainder has the opposite sign in the next pair, so it cancels in the median over pairs. An even number of
pairs balances the two orders.

The interval is that of the sign test. For n independent ratios of any continuous distribution, the number of ratios
below the true median is binomial (n, 1/2), so the k-th smallest and the k-th largest enclose it with probability
1 - 2 P(X < k). See H. A. David and H. N. Nagaraja, Order Statistics, 3rd edition, 2003, section 7.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

CONFIDENCE = 0.95
# The smallest n for which the minimum and maximum of n values enclose the median with 95%: 1 - 2/2**6 = 0.969.
LEAST_PAIRS = 6

Better = Literal["lower", "higher"]
Verdict = Literal["better", "worse", "no difference", "not enough pairs"]


@dataclass(frozen=True)
class Ratio:
    """Ratio pruned / baseline over the pairs.

    Attributes:
        median: median of the pairs' ratios, computed on their logarithms, so that 2 and 1/2 are equally far from 1.
        low, high: ends of the interval of the median; None with too few pairs for an interval.
        n: number of complete pairs.
        confidence: actual coverage of the interval, at least `CONFIDENCE`; None without an interval.
        exact: true if neither side varies (such as the size of a file), so the ratio has no uncertainty.
    """

    median: float
    low: float | None
    high: float | None
    n: int
    confidence: float | None
    exact: bool = False


def median(values: Iterable[float]) -> float | None:
    """Return the middle value, or the mean of the two middle values. None for an empty sequence."""
    return quantile(sorted(values), 0.5)


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """Return the quantile `share` (0 to 1) of the ascending values `ordered`, or None for an empty sequence.

    Values between two neighbours are interpolated linearly.

    The same definition as numpy's default (type 7 of Hyndman and Fan, The American Statistician 50, 1996).
    """
    if not ordered:
        return None
    place = share * (len(ordered) - 1)
    below = min(int(place), len(ordered) - 1)
    above = min(below + 1, len(ordered) - 1)
    # Between two equal neighbours, rounding could give another value.
    if ordered[below] == ordered[above]:
        return ordered[below]
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def interval_rank(n: int, confidence: float = CONFIDENCE) -> tuple[int, float] | None:
    """Return the largest k for which the k-th smallest and k-th largest of n enclose the median with `confidence`.

    Returns:
        (k, coverage), or None if even the smallest and largest value do not enclose the median with `confidence`.
    """
    outside, rank, coverage = 0, 0, 0.0
    for k in range(1, n // 2 + 1):
        outside += math.comb(n, k - 1)
        inside = 1.0 - 2 * outside / (1 << n)
        if inside < confidence:
            break
        rank, coverage = k, inside
    return (rank, coverage) if rank else None


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float, float] | None:
    """Return (low, high, coverage) of the median of independent values, or None for fewer than 6 values (at 95%)."""
    found = interval_rank(len(values), confidence)
    if found is None:
        return None
    rank, coverage = found
    ordered = sorted(values)
    return ordered[rank - 1], ordered[-rank], coverage


def paired_ratio(pairs: Sequence[tuple[float | None, float | None]]) -> Ratio | None:
    """Return the ratio of (pruned, baseline) pairs.

    A pair with a missing, non-finite or non-positive value is incomplete and is ignored.

    Returns:
        The ratio, or None without a complete pair.
    """
    logs = [math.log(new) - math.log(old) for new, old in pairs if _positive(new) and _positive(old) and new and old]
    middle = median(logs)
    if middle is None:
        return None
    found = median_interval(logs)
    if found is None:
        return Ratio(_exp(middle), None, None, len(logs), None)
    low, high, coverage = found
    return Ratio(_exp(middle), _exp(low), _exp(high), len(logs), coverage)


def exact_ratio(pruned: float, baseline: float, n: int) -> Ratio | None:
    """Return the ratio of two quantities that do not vary, or None if one of them is not positive."""
    if not (_positive(pruned) and _positive(baseline)):
        return None
    return Ratio(pruned / baseline, None, None, n, None, exact=True)


def verdict(ratio: Ratio, better: Better) -> Verdict:
    """Return what the pairs show about the pruned side.

    `no difference` means that the interval contains 1. It does not prove that the sides are equal.
    """
    if ratio.exact:
        low = high = ratio.median
    elif ratio.low is None or ratio.high is None:
        return "not enough pairs"
    else:
        low, high = ratio.low, ratio.high
    if low <= 1.0 <= high:
        return "no difference"
    return "better" if (low > 1.0) == (better == "higher") else "worse"


def _positive(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0


def _exp(value: float) -> float:
    # exp(log(x) - log(x)) is exactly 1. The ratio of two floats can overflow a float.
    return math.exp(min(max(value, -700.0), 700.0))
