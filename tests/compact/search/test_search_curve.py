"""Which sizes a budget allows, and which of those that were judged is taken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compact.pruning.budget import Sizes
from compact.search.find import Point, best_along, rank_key, settle, sizes_at_ratio, sizes_within
from compact.search.size_evaluator import TextScore
from tests.compact.budgets import SHAPES, real_curve, removed


@pytest.mark.parametrize("name", SHAPES)
def test_the_candidates_of_a_ratio_go_from_the_vocabulary_alone_to_the_ffn_alone(name: str) -> None:
    curve, parts, limits = real_curve(name)
    ratio = 0.5 * min(parts.vocabulary, parts.ffn) / parts.total
    found = sizes_at_ratio(ratio, curve)
    assert all(abs(removed(sizes, parts, limits) - ratio) <= 0.005 for sizes in found)
    assert all(sizes.vocab_size in curve.vocabulary and sizes.intermediate_size % 32 == 0 for sizes in found)
    inner = [sizes.intermediate_size for sizes in found]
    vocabulary = [sizes.vocab_size for sizes in found]
    assert inner == sorted(inner, reverse=True)
    assert vocabulary == sorted(vocabulary)
    step = 32 * parts.per_channel / (ratio * parts.total)
    assert curve.share(found[0]) == 1
    assert curve.share(found[-1]) < step


def test_what_fits_is_the_largest_vocabulary_of_each_ffn_size() -> None:
    curve, _, _ = real_curve("smollm2-135m")

    def size_of(sizes: Sizes) -> int:
        return 1000 * sizes.vocab_size + 20_000 * sizes.intermediate_size + 5_000_000

    budget = size_of(Sizes(24_576, 1024))
    found = sizes_within(budget, curve, size_of)
    step = curve.vocabulary[1] - curve.vocabulary[0]
    assert len(found) > 10
    for sizes in found:
        assert size_of(sizes) <= budget
        if sizes.vocab_size < 49_152:
            assert size_of(Sizes(sizes.vocab_size + step, sizes.intermediate_size)) > budget
    assert len({sizes.vocab_size for sizes in found}) == len(found), "a smaller FFN for nothing is no candidate"


@given(least=st.integers(0, 39), count=st.integers(1, 40), tilt=st.floats(0.5, 2))
def test_the_search_ends_at_the_bottom_of_a_valley(least: int, count: int, tilt: float) -> None:
    bottom = least % count
    asked: list[int] = []

    def measure(sizes: Sizes) -> Point:
        asked.append(sizes.vocab_size)
        off = sizes.vocab_size - bottom
        ratio = 1 + 0.01 * (off if off > 0 else -off * tilt)
        return Point(sizes, 1, None, 0.5, {"t": TextScore(ratio, 1, 1)}, {"t": ratio})

    points = best_along([Sizes(n, 1) for n in range(count)], measure, evaluations=12)
    assert min(points, key=rank_key).sizes.vocab_size == bottom
    assert len(asked) == len(set(asked)) <= 12


def test_the_mean_decides_and_the_worst_breaks_ties() -> None:
    def point(*ratios: float) -> Point:
        return Point(Sizes(1, 1), 1, None, 0.5, {}, dict(zip("abc", ratios, strict=False)))

    even, uneven, better = point(1.2, 1.2), point(1.1, 1.3), point(1.0, 1.38)
    assert min([uneven, even], key=rank_key) is even
    assert min([uneven, even, better], key=rank_key) is better


def _valley(*losses: float) -> list[Point]:
    shares = [n / (len(losses) - 1) for n in range(len(losses))]
    return [
        Point(Sizes(n, 1), 1, None, share, {}, {"t": 1 + loss})
        for n, (share, loss) in enumerate(zip(shares, losses, strict=True))
    ]


def test_a_lucky_point_at_the_edge_of_a_valley_is_not_taken() -> None:
    clean = _valley(0.30, 0.22, 0.18, 0.165, 0.16, 0.165, 0.18, 0.22, 0.30)
    assert settle(clean) is clean[4]
    lucky = _valley(0.30, 0.22, 0.18, 0.165, 0.16, 0.165, 0.155, 0.22, 0.30)
    assert settle(lucky) in lucky[4:6]
    # No valley, or too few points to see one: the smallest loss as it is.
    slope = _valley(0.10, 0.11, 0.12, 0.13, 0.14)
    assert settle(slope) is slope[0]
    assert settle(clean[:2]) is clean[1]


@pytest.mark.parametrize("name", SHAPES)
def test_a_multiple_of_the_vocabulary_leaves_a_search_as_many_sizes(name: str) -> None:
    free, *_ = real_curve(name)
    padded, *_ = real_curve(name, multiple=64)
    assert all(size % 64 == 0 for size in padded.vocabulary)
    assert len(padded.vocabulary) >= len(free.vocabulary) - 1
    for ratio in (0.1, 0.2):
        found = sizes_at_ratio(ratio, padded)
        assert len(found) >= 0.8 * len(sizes_at_ratio(ratio, free))


def test_what_removes_less_is_not_better_for_it() -> None:
    def point(loss: float, excess: float) -> Point:
        return Point(Sizes(1, 1), 1, None, 0.5, {}, {"t": 1 + loss}, excess)

    assert min(point(0.100, 1.0), point(0.098, 0.9), key=rank_key).excess == 1.0
    assert min(point(0.100, 1.0), point(0.080, 0.9), key=rank_key).excess == 0.9
