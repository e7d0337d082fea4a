"""Figures as text: no rounding hides a difference, and none invents one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_bench.report.words import digits, figure, ratio_words, times


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (115_500_000, "bytes", "115.5 MB"),
        (1_234_000_000, "bytes", "1.23 GB"),
        (4_096, "bytes", "4.1 kB"),
        (0, "bytes", "0.0 kB"),
        (0.0511, "s", "0.0511 s"),
        (12.84, "ms", "12.8 ms"),
        (1349.35, "characters/s", "1,349 characters/s"),
        (1.0321, "bits/byte", "1.032"),
        (None, "s", "–"),
    ],
)
def test_figures(value: float | None, unit: str, shown: str) -> None:
    assert figure(value, unit) == shown


def ratio(median: float, low: float | None = None, high: float | None = None, exact: bool = False) -> dict[str, Any]:
    return {"median": median, "low": low, "high": high, "n": 4, "confidence": None, "exact": exact}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (ratio(1.2234, 1.2041, 1.2551), "1.22 [1.20, 1.26]"),
        (ratio(0.9, 0.85, 0.998), "0.900 [0.850, 0.998]"),
        (ratio(0.8754, 0.8746, 0.8760), "0.875 [0.875, 0.876]"),
        (ratio(0.79765, exact=True), "0.80 (exact)"),
        (ratio(1.0, exact=True), "1.00 (exact)"),
        (ratio(1.22), "1.22 (n = 4)"),
        (None, "–"),
    ],
)
def test_ratios(value: dict[str, Any] | None, shown: str) -> None:
    assert ratio_words(value) == shown


@given(st.floats(0.0005, 0.9994) | st.floats(1.0006, 99.0))
def test_a_ratio_that_is_not_one_never_reads_as_one(value: float) -> None:
    assert float(times(value)) != 1.0


@given(st.floats(1e-6, 1e9))
def test_three_digits_at_least(value: float) -> None:
    assert float(digits(value).replace(",", "")) == pytest.approx(value, rel=0.006)
