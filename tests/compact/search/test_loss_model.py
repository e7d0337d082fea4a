"""The law of the loss: recovered from exact points, monotone, and not disturbed by noise."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compact.search.loss_model import PowerLaw, as_share, fit_law, fit_power_law

POSITIVE = st.floats(1e-4, 1.0)


@pytest.mark.parametrize(("scale", "exponent"), [(0.5, 1.0), (3.0, 1.7), (0.02, 0.8), (1.0, 2.4)])
def test_a_law_is_recovered_from_exact_points(scale: float, exponent: float) -> None:
    points = [(x, scale * x**exponent) for x in (0.01, 0.05, 0.2)]
    # The default is only for a single point.
    law = fit_power_law(points, 9.9)
    assert law.scale == pytest.approx(scale)
    assert law.exponent == pytest.approx(exponent)
    assert law.at(0.1) == pytest.approx(scale * 0.1**exponent)


def test_one_point_takes_the_default_exponent() -> None:
    law = fit_power_law([(0.1, 0.04)], 1.5)
    assert law.exponent == 1.5
    assert law.at(0.1) == pytest.approx(0.04)
    assert law.at(0.4) == pytest.approx(0.04 * 8)


@pytest.mark.parametrize("noise", [(0.001, -0.002), (0.004, 0.0), (0.0, 0.3), (-0.1, 0.3)])
def test_points_within_the_noise_change_nothing(noise: tuple[float, float]) -> None:
    """A negative loss is noise, and sizes without extra tokens or lost energy say nothing."""
    points = [(0.02, 0.006), (0.1, 0.05)]
    assert fit_power_law([*points, noise], 1.0) == fit_power_law(points, 1.0)


def test_nothing_is_lost_if_no_point_has_a_loss() -> None:
    for points in ([], [(0.1, 0.0)], [(0.1, -0.01), (0.3, -0.002)]):
        law = fit_power_law(points, 1.0)
        assert law.at(0.5) == 0.0


def test_a_steep_or_flat_pair_of_points_is_noise() -> None:
    """A quarter of the channels cannot cost a thousand times as much as a fifth."""
    steep, flat = fit_power_law([(0.20, 1e-5), (0.25, 1e-2)], 1.5), fit_power_law([(0.01, 0.0099), (0.3, 0.01)], 1.5)
    assert 0.5 <= flat.exponent < 1.0 < steep.exponent <= 3.0
    assert steep.at(0.25) == pytest.approx(1e-2)
    assert flat.at(0.3) == pytest.approx(0.01)


@given(points=st.lists(st.tuples(POSITIVE, st.floats(-0.1, 1.0)), max_size=5), first=POSITIVE, second=POSITIVE)
def test_more_is_never_cheaper(points: list[tuple[float, float]], first: float, second: float) -> None:
    law = fit_power_law(points, 1.0)
    low, high = sorted((first, second))
    assert 0.0 <= law.at(low) <= law.at(high)
    assert law.at(0.0) == 0.0
    assert math.isfinite(law.at(1.0))


def test_a_law_goes_through_its_points_and_follows_their_ends() -> None:
    points = [(0.01, 0.02), (0.05, 0.1), (0.15, 0.6)]
    law = fit_law(points, 1.0)
    assert [law.at(x) for x, _ in points] == pytest.approx([loss for _, loss in points])
    assert law.at(0.005) == pytest.approx(0.01)  # the first two points are proportional
    steeper = math.log(0.6 / 0.1) / math.log(3)
    assert law.at(0.3) == pytest.approx(0.6 * 2**steeper)


def test_a_point_that_contradicts_a_larger_one_is_left_out() -> None:
    assert fit_law([(0.01, 0.3), (0.05, 0.1), (0.15, 0.6)], 1.0) == fit_law([(0.05, 0.1), (0.15, 0.6)], 1.0)


@given(points=st.lists(st.tuples(POSITIVE, st.floats(-0.1, 1.0)), max_size=5), first=POSITIVE, second=POSITIVE)
def test_more_is_never_cheaper_between_points(points: list[tuple[float, float]], first: float, second: float) -> None:
    law = fit_law(points, 1.0)
    low, high = sorted((first, second))
    assert 0.0 <= law.at(low) <= law.at(high) * (1 + 1e-9)


def test_a_loss_is_shown_as_a_share() -> None:
    assert as_share(math.log(1.03)) == pytest.approx(0.03)
    assert as_share(0.0) == 0.0
    assert PowerLaw(1.0, 1.0).at(0.0) == 0.0
