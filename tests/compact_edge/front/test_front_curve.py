"""The front of all sizes and types: where it is measured, and what the measurements correct."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest

from compact.pruning.budget import Sizes
from compact_edge.front.candidates import SearchLimits
from compact_edge.front.curve import CurveSearch, curve_record, measure_front
from tests.compact_edge.front.synthetic import TYPES, WHOLE, LinearSizes, synthetic_search, true_loss


@pytest.fixture(scope="module")
def optimistic() -> CurveSearch:
    """A front whose predictions of cuts are too low by a third."""
    search, _ = synthetic_search(SearchLimits(), optimism=0.67)
    return measure_front(search, 8)


@pytest.fixture
def record(optimistic: CurveSearch, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr("compact_edge.front.record.n_params_of", lambda _, sizes: sizes.vocab_size)
    return curve_record(optimistic)


def truth(point: dict[str, Any]) -> float:
    return true_loss(Sizes(point["vocab_size"], point["intermediate_size"]), point["type"])


def test_measurements_are_spread_over_the_sizes_of_the_front(optimistic: CurveSearch) -> None:
    sizes = sorted(one.candidate.n_bytes for one in optimistic.measured.values())
    assert len(sizes) == 8
    gaps = [math.log(larger / smaller) for smaller, larger in pairwise(sizes)]
    assert max(gaps) < 3 * sum(gaps) / len(gaps)


def test_measurements_correct_what_is_not_measured(record: dict[str, Any]) -> None:
    left = [point for point in record["front"] if not point["measured"]]
    assert len(left) > 10

    def error(name: str) -> float:
        return sum(abs(math.log1p(point[name]) - truth(point)) for point in left) / len(left)

    assert error("loss") < 0.35 * error("predicted_loss")


def test_the_unpruned_model_is_not_corrected_by_cuts(optimistic: CurveSearch) -> None:
    for each in optimistic.everything:
        if each.sizes == WHOLE and each.key not in optimistic.measured:
            assert optimistic.loss_of(each) == pytest.approx(TYPES[each.type.name][1])


def test_the_front_has_no_point_that_another_beats(record: dict[str, Any]) -> None:
    for smaller, larger in pairwise(record["front"]):
        assert smaller["bytes"] < larger["bytes"] and smaller["loss"] > larger["loss"]
    assert all(point["loss"] <= 1 for point in record["front"])
    for point in record["front"]:
        for other in (*record["measured"], *record["unpruned_types"]):
            assert other["bytes"] > point["bytes"] or other["loss"] > point["loss"] - 0.0006


def test_speed_counts_characters_and_bytes(record: dict[str, Any]) -> None:
    assert record["speed_reference"] == "Q8_0"
    slowest = LinearSizes(TYPES["Q8_0"][0]).bytes_per_token(WHOLE)
    for point in record["unpruned_types"]:
        n_bytes = LinearSizes(TYPES[point["type"]][0]).bytes_per_token(WHOLE)
        assert point["speed"] == pytest.approx(slowest / n_bytes, abs=1e-3)


def test_a_noisy_gain_does_not_make_everything_better() -> None:
    """Short texts may show a smaller loss than the unpruned model's."""
    search, trials = synthetic_search(SearchLimits())
    score = trials.score

    def lucky(sizes: Sizes, artifact_format: Any) -> Any:
        texts = score(sizes, artifact_format)
        gain = 0.002 if true_loss(sizes, artifact_format.name) < 0.005 else 0.0
        return {
            name: type(text)(text.bits_per_byte - gain, text.n_tokens, text.n_characters)
            for name, text in texts.items()
        }

    trials.score = lucky  # type: ignore[method-assign]
    found = measure_front(search, 6)
    for each in found.everything:
        if each.key not in found.measured:
            true = true_loss(each.sizes, each.type.name)
            assert found.loss_of(each) >= 0.5 * true
