"""The interval of the median ratio against brute force, published ranks and simulation."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_bench.measuring.statistics import (
    Better,
    Ratio,
    exact_ratio,
    interval_rank,
    median,
    median_interval,
    paired_ratio,
    quantile,
    verdict,
)

# Ranks of the sign-test interval at 95% as statistical tables print them (two-sided alpha of at most 0.05: the critical
# value plus one; e.g. W. J. Conover, Practical Nonparametric Statistics, table of the sign test).
TABLE = {6: 1, 7: 1, 8: 1, 9: 2, 10: 2, 11: 2, 12: 3, 15: 4, 16: 4, 17: 5, 20: 6, 25: 8, 30: 10, 40: 14, 50: 18}


@pytest.mark.parametrize(("n", "rank"), TABLE.items())
def test_ranks_are_those_of_the_printed_table(n: int, rank: int) -> None:
    found = interval_rank(n)
    assert found is not None
    assert found[0] == rank


@pytest.mark.parametrize("n", range(6, 15))
def test_coverage_by_counting_every_outcome(n: int) -> None:
    found = interval_rank(n)
    assert found is not None
    rank, coverage = found

    def encloses(rank: int) -> float:
        # Each value lies below (1) or above (0) the true median; the k-th of n is below it when k are.
        held = sum(rank <= sum(outcome) <= n - rank for outcome in product((0, 1), repeat=n))
        return held / 2**n

    assert coverage == pytest.approx(encloses(rank))
    assert coverage >= 0.95
    assert encloses(rank + 1) < 0.95, "a narrower interval would have done"


@pytest.mark.parametrize("n", range(6))
def test_no_interval_of_fewer_than_six(n: int) -> None:
    assert interval_rank(n) is None
    ratio = paired_ratio([(2.0 + 0.1 * i, 1.0) for i in range(n)])
    if n == 0:
        assert ratio is None
        return
    assert ratio is not None
    assert (ratio.low, ratio.high, ratio.confidence, ratio.n) == (None, None, None, n)
    assert verdict(ratio, "higher") == "not enough pairs"


def heavy(draw: random.Random) -> float:
    # Student's t with 2 degrees of freedom: no finite variance.
    return draw.gauss(0, 1) / math.sqrt(draw.expovariate(1))


NOISE: dict[str, tuple[Callable[[random.Random], float], float]] = {
    "normal": (lambda draw: draw.gauss(0, 1), 0.0),
    "lognormal": (lambda draw: draw.lognormvariate(0, 1), 1.0),
    "heavy": (heavy, 0.0),
}


@pytest.mark.parametrize("name", NOISE)
@pytest.mark.parametrize("n", [6, 10, 20])
def test_the_interval_covers_the_true_ratio(name: str, n: int) -> None:
    noise, middle = NOISE[name]
    draw = random.Random(f"{name} {n}")
    true, runs, held = 1.25, 3000, 0
    for _ in range(runs):
        # Noise that is common to a pair is large and cancels; the rest is centred so that its median is 0.
        pairs = []
        for _ in range(n):
            common = math.exp(draw.gauss(0, 0.5))
            pairs.append((true * common * math.exp(0.1 * (noise(draw) - middle)), common))
        ratio = paired_ratio(pairs)
        assert ratio is not None
        assert ratio.low is not None
        assert ratio.high is not None
        held += ratio.low <= true <= ratio.high
    assert held / runs >= 0.935


def test_drift_cancels_in_alternating_pairs() -> None:
    """A device that slows by 1% with every record: pairs in alternating order show no difference of equal sides."""
    pairs = []
    for pair in range(10):
        first, second = 100 * 0.99 ** (2 * pair), 100 * 0.99 ** (2 * pair + 1)
        pairs.append((first, second) if pair % 2 == 0 else (second, first))
    ratio = paired_ratio(pairs)
    assert ratio is not None
    assert ratio.median == pytest.approx(1.0)
    assert verdict(ratio, "higher") == "no difference"


def test_incomplete_pairs_do_not_count() -> None:
    good = [(2.0, 1.0)] * 6
    bad: list[tuple[float | None, float | None]] = [
        (None, 1.0),
        (1.0, None),
        (math.nan, 1.0),
        (1.0, math.inf),
        (0.0, 1.0),
        (1.0, 0.0),
        (-1.0, 1.0),
    ]
    ratio = paired_ratio([*bad, *good])
    assert ratio is not None
    assert ratio.n == 6
    assert ratio.median == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("low", "high", "better", "expected"),
    [
        (1.1, 1.3, "higher", "better"),
        (1.1, 1.3, "lower", "worse"),
        (0.7, 0.9, "higher", "worse"),
        (0.7, 0.9, "lower", "better"),
        (0.9, 1.1, "higher", "no difference"),
        (1.0, 1.1, "higher", "no difference"),
        (0.9, 1.0, "lower", "no difference"),
    ],
)
def test_verdicts(low: float, high: float, better: Better, expected: str) -> None:
    assert verdict(Ratio((low * high) ** 0.5, low, high, 10, 0.98), better) == expected


def test_exact_ratios_need_no_pairs() -> None:
    ratio = exact_ratio(115.5, 144.8, 1)
    assert ratio is not None
    assert verdict(ratio, "lower") == "better"
    assert verdict(ratio, "higher") == "worse"
    same = exact_ratio(5.0, 5.0, 1)
    assert same is not None
    assert verdict(same, "lower") == "no difference"
    assert exact_ratio(0.0, 1.0, 1) is None


positive = st.floats(1e-6, 1e6)


@given(st.lists(st.tuples(positive, positive), min_size=6, max_size=40))
def test_swapping_the_sides_inverts_the_ratio(pairs: list[tuple[float, float]]) -> None:
    ratio, swapped = paired_ratio(pairs), paired_ratio([(old, new) for new, old in pairs])
    assert ratio is not None and swapped is not None
    assert ratio.low is not None and ratio.high is not None and swapped.low is not None and swapped.high is not None
    assert ratio.median * swapped.median == pytest.approx(1)
    assert ratio.low * swapped.high == pytest.approx(1)
    assert ratio.low <= ratio.median * (1 + 1e-9)
    assert ratio.median <= ratio.high * (1 + 1e-9)


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=50), st.floats(0, 1))
def test_quantiles_agree_with_numpy(values: list[float], share: float) -> None:
    numpy = pytest.importorskip("numpy")
    found = quantile(sorted(values), share)
    assert found == pytest.approx(float(numpy.quantile(values, share)), rel=1e-9, abs=1e-6)


def test_of_nothing() -> None:
    assert quantile([], 0.5) is None
    assert median([]) is None
    assert median_interval([1.0] * 5) is None
    assert paired_ratio([]) is None


def test_many_pairs() -> None:
    # statsmodels and R's DescTools::MedianCI(method="exact") give ranks 40 and 61 for 100 values.
    found = interval_rank(100)
    assert found is not None
    assert (found[0], 101 - found[0]) == (40, 61)
    assert found[1] == pytest.approx(0.9648, abs=1e-4)
