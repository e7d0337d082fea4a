"""The point of a curve that training starts from."""

from __future__ import annotations

import math

from compact.pruning.budget import Sizes
from compact_edge.front.candidates import SearchLimits
from compact_edge.front.recovered import LARGEST_LOSS, point_to_recover
from compact_edge.front.search import FrontSearch
from tests.compact_edge.front.synthetic import WHOLE, synthetic_search


def measured_at(*sizes: Sizes) -> FrontSearch:
    search, _ = synthetic_search(SearchLimits())
    for each in sizes:
        search.measure(next(one for one in search.everything if one.sizes == each))
    return search


def cuts() -> list[Sizes]:
    search, _ = synthetic_search(SearchLimits())
    found = {one.sizes for one in search.everything if one.sizes != WHOLE}
    return sorted(found, key=lambda each: (each.intermediate_size, each.vocab_size))


def test_the_cut_with_most_to_recover_is_trained() -> None:
    search = measured_at(WHOLE, *cuts())
    found = point_to_recover(search)
    assert found is not None
    useful = [one.loss for one in search.measured.values() if one.loss <= math.log1p(LARGEST_LOSS)]
    assert found.loss == max(useful)
    assert found.candidate.sizes != WHOLE


def test_without_a_measured_cut_there_is_nothing_to_recover() -> None:
    assert point_to_recover(measured_at(WHOLE)) is None


def test_if_all_cuts_lose_too_much_the_best_one_is_trained() -> None:
    worst = cuts()[:2]
    search = measured_at(*worst)
    found = point_to_recover(search)
    assert found is not None
    assert found.loss == min(one.loss for one in search.measured.values())
