"""The search over sizes and types finds the best candidate within the limits, on a model with known losses."""

from __future__ import annotations

import itertools
import math

import pytest

from compact.base.errors import BudgetError
from compact.pruning.budget import Sizes
from compact.pruning.budget_options import MinSpeed
from compact_edge.front.candidates import Candidate, SearchLimits, candidates_of, pareto, violations, within
from compact_edge.front.search import TRIALS, Measured, run_search
from tests.compact_edge.front.synthetic import (
    CURVE,
    TYPES,
    WHOLE,
    LinearSizes,
    synthetic_search,
    true_loss,
)

BANDWIDTH = 10e9


def everything(limits: SearchLimits) -> list[Candidate]:
    search, _ = synthetic_search(limits)
    return candidates_of(search.types, search.curve, search.predictor, limits)


def real_bytes(best: Measured) -> int:
    return LinearSizes(TYPES[best.candidate.type.name][0]).file_bytes(best.candidate.sizes)


def loss_of(best: Measured) -> float:
    return true_loss(best.candidate.sizes, best.candidate.type.name)


def real_speed(best: Measured, context: int) -> float:
    """Tokens/s, by hand."""
    figures = LinearSizes(TYPES[best.candidate.type.name][0])
    return BANDWIDTH / (figures.bytes_per_token(best.candidate.sizes) + 500 * context)


# ----- candidates


def test_bytes_and_memory_are_upper_bounds_by_a_kilobyte() -> None:
    for candidate in everything(SearchLimits(memory_bytes=10**9, bandwidth=BANDWIDTH))[::97]:
        figures = LinearSizes(TYPES[candidate.type.name][0])
        assert figures.file_bytes(candidate.sizes) <= candidate.n_bytes <= figures.file_bytes(candidate.sizes) + 1000
        memory = figures.memory_bytes(candidate.sizes, 2048)
        assert candidate.memory is not None
        assert memory <= candidate.memory <= memory + 1000
        assert candidate.tokens_per_second == pytest.approx(
            BANDWIDTH / (figures.bytes_per_token(candidate.sizes) + 1000 * 2048 / 2), rel=1e-3
        )
        assert candidate.loss == pytest.approx(true_loss(candidate.sizes, candidate.type.name))


def test_every_type_has_the_unpruned_model_among_its_candidates() -> None:
    found = everything(SearchLimits())
    assert {each.type.name for each in found if each.sizes == WHOLE} == set(TYPES)
    assert len({each.key for each in found}) == len(found) > 1000


def test_each_limit_is_violated_alone() -> None:
    whole = next(
        each
        for each in everything(SearchLimits(memory_bytes=10**12, bandwidth=BANDWIDTH))
        if each.sizes == WHOLE and each.type.name == "Q8_0"
    )
    assert whole.memory is not None
    assert whole.tokens_per_second is not None
    tokens, characters = MinSpeed(whole.tokens_per_second, "tokens"), whole.characters_per_second
    assert characters == pytest.approx(4 * whole.tokens_per_second)
    for met in (
        SearchLimits(),
        SearchLimits(fit_bytes=whole.n_bytes),
        SearchLimits(memory_bytes=whole.memory),
        SearchLimits(min_speed=tokens),
        SearchLimits(min_speed=MinSpeed(characters, "characters")),
        SearchLimits(max_loss=math.expm1(whole.loss) * 1.001),
    ):
        assert within(whole, met)
    for name, broken in (
        ("--fit", SearchLimits(fit_bytes=whole.n_bytes - 1)),
        ("--max-memory", SearchLimits(memory_bytes=whole.memory - 1)),
        ("--min-speed", SearchLimits(min_speed=MinSpeed(1.01 * tokens.value, "tokens"))),
        ("--min-speed", SearchLimits(min_speed=MinSpeed(1.01 * characters, "characters"))),
        ("--max-loss", SearchLimits(max_loss=math.expm1(whole.loss) * 0.99)),
    ):
        assert violations(whole, broken) == [name]
    # A measured loss replaces the predicted one.
    assert violations(whole, SearchLimits(max_loss=0.05), loss=0.06) == ["--max-loss"]
    several = SearchLimits(fit_bytes=1, memory_bytes=1, min_speed=MinSpeed(1e9, "tokens"), max_loss=1e-9)
    assert violations(whole, several) == ["--fit", "--max-memory", "--min-speed", "--max-loss"]


def test_no_point_of_the_front_is_beaten_by_another_candidate() -> None:
    found = everything(SearchLimits())
    front = pareto(found, lambda each: each.loss)
    for smaller, larger in itertools.pairwise(front):
        assert smaller.n_bytes < larger.n_bytes and smaller.loss > larger.loss
    for candidate in found[::61]:
        assert any(point.n_bytes <= candidate.n_bytes and point.loss <= candidate.loss for point in front)


# ----- the search


@pytest.mark.parametrize("optimism", [1.0, 0.6, 1.6])
@pytest.mark.parametrize("fit", [55_000_000, 70_000_000, 90_000_000, 120_000_000])
def test_a_file_fits_and_nearly_nothing_that_fits_loses_less(fit: int, optimism: float) -> None:
    """Also if the predicted losses of cuts are wrong by half: measured artifacts correct them."""
    search, trials = synthetic_search(SearchLimits(fit_bytes=fit), optimism=optimism)
    best = run_search(search)
    assert real_bytes(best) <= fit
    assert best.loss == pytest.approx(loss_of(best))
    least = min(true_loss(each.sizes, each.type.name) for each in everything(search.limits) if each.n_bytes <= fit)
    assert loss_of(best) <= least + 0.01
    assert len(trials.scored) == len(set(trials.scored)) <= TRIALS, "nothing is measured twice"


@pytest.mark.parametrize("optimism", [1.0, 0.5, 1.6])
@pytest.mark.parametrize("max_loss", [0.02, 0.05, 0.2])
def test_the_smallest_file_within_a_loss_is_found(max_loss: float, optimism: float) -> None:
    search, _ = synthetic_search(SearchLimits(max_loss=max_loss), optimism=optimism)
    best = run_search(search)
    assert math.expm1(loss_of(best)) <= max_loss
    least = min(
        each.n_bytes
        for each in everything(search.limits)
        if math.expm1(true_loss(each.sizes, each.type.name)) <= max_loss
    )
    assert best.candidate.n_bytes <= (1.05 if optimism == 1 else 1.2) * least


def test_all_limits_together() -> None:
    limits = SearchLimits(
        fit_bytes=90_000_000,
        memory_bytes=92_000_000,
        min_speed=MinSpeed(110, "tokens"),
        max_loss=0.3,
        context_length=512,
        bandwidth=BANDWIDTH,
    )
    search, _ = synthetic_search(limits)
    best = run_search(search)
    figures = LinearSizes(TYPES[best.candidate.type.name][0])
    assert real_bytes(best) <= 90_000_000
    assert figures.memory_bytes(best.candidate.sizes, 512) <= 92_000_000
    assert real_speed(best, 512) >= 110
    assert math.expm1(loss_of(best)) <= 0.3


def test_speed_in_characters_wants_more_tokens_kept_than_speed_in_tokens() -> None:
    """A smaller vocabulary makes tokens shorter, so it helps less."""
    found = {}
    for unit, value in (("tokens", 140.0), ("characters", 560.0)):
        limits = SearchLimits(min_speed=MinSpeed(value, unit), bandwidth=BANDWIDTH)  # type: ignore[arg-type]
        search, _ = synthetic_search(limits, names=("Q8_0",))
        best = run_search(search)
        tokens = real_speed(best, 2048)
        per_token = search.predictor.characters_per_token(best.candidate.sizes.vocab_size)
        assert (tokens if unit == "tokens" else tokens * per_token) >= value
        found[unit] = best.candidate.sizes.vocab_size
    assert found["characters"] >= found["tokens"]


def test_the_unpruned_model_in_a_smaller_type_wins_if_it_loses_least() -> None:
    fit = LinearSizes(TYPES["Q5_0"][0]).file_bytes(WHOLE) + 1000
    search, _ = synthetic_search(SearchLimits(fit_bytes=fit))
    best = run_search(search)
    assert best.candidate.key == (WHOLE, "Q5_0")


def test_a_time_limit_leaves_one_measurement() -> None:
    search, trials = synthetic_search(SearchLimits(fit_bytes=70_000_000))
    best = run_search(search, minutes=1e-9)
    assert len(trials.scored) == 1
    assert real_bytes(best) <= 70_000_000


@pytest.mark.parametrize("minutes", [1e-9, None])
@pytest.mark.parametrize("optimism", [0.1, 0.4])
def test_a_search_goes_on_until_something_meets_the_loss(optimism: float, minutes: float | None) -> None:
    """The predictions are far too good, so the first measured files lose too much, and the time is over."""
    search, _ = synthetic_search(SearchLimits(max_loss=0.1), optimism=optimism)
    best = run_search(search, minutes=minutes)
    assert math.expm1(loss_of(best)) <= 0.1


def test_errors_of_cuts_do_not_count_against_the_unpruned_model() -> None:
    """All cuts lose ten times as much as predicted, and the unpruned model in a smaller type as much as predicted."""
    fit = LinearSizes(TYPES["Q5_0"][0]).file_bytes(WHOLE) + 1000
    search, _ = synthetic_search(SearchLimits(fit_bytes=fit, max_loss=None), optimism=0.01)
    assert run_search(search).candidate.key == (WHOLE, "Q5_0")


def test_a_second_format_takes_its_best_type_at_the_sizes() -> None:
    sizes = next(each.sizes for each in everything(SearchLimits()) if each.sizes.vocab_size < WHOLE.vocab_size)
    search, _ = synthetic_search(SearchLimits())
    best = run_search(search, only=sizes)
    assert best.candidate.key == (sizes, "Q8_0")
    small = SearchLimits(fit_bytes=LinearSizes(TYPES["Q5_0"][0]).file_bytes(sizes) + 1000)
    search, _ = synthetic_search(small)
    assert run_search(search, only=sizes).candidate.key == (sizes, "Q5_0")


# ----- limits that cannot be met


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (SearchLimits(fit_bytes=1_000_000), r"--fit 1\.0 MB: not reachable, because the smallest file has \d+\.\d MB"),
        (SearchLimits(memory_bytes=1_000_000), r"--max-memory 1\.0 MB: not reachable, the smallest model needs \d+"),
        (
            SearchLimits(min_speed=MinSpeed(1e6, "tokens"), bandwidth=BANDWIDTH),
            r"--min-speed: not reachable, the fastest model decodes \d+\.\d characters/s \(\d+\.\d tokens/s\)",
        ),
        (SearchLimits(max_loss=0.0005), r"--max-loss 0\.1%: not reachable, the best file loses 0\.1%"),
    ],
    ids=["fit", "memory", "speed", "loss"],
)
def test_a_limit_out_of_reach_is_named_with_the_nearest_value(limits: SearchLimits, words: str) -> None:
    search, trials = synthetic_search(limits)
    with pytest.raises(BudgetError, match=words) as caught:
        run_search(search)
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.message
    assert trials.scored == []


def test_the_smallest_size_in_the_message_is_reachable() -> None:
    search, _ = synthetic_search(SearchLimits(fit_bytes=1_000_000))
    with pytest.raises(BudgetError, match="smallest file has") as caught:
        run_search(search)
    size = float(caught.value.message.split("smallest file has ")[1].split(" MB")[0])
    again, _ = synthetic_search(SearchLimits(fit_bytes=int((size + 0.1) * 1e6)))
    assert real_bytes(run_search(again)) <= (size + 0.1) * 1e6


def test_limits_that_contradict_each_other_are_both_named() -> None:
    search, _ = synthetic_search(SearchLimits(fit_bytes=50_000_000, max_loss=0.01))
    with pytest.raises(
        BudgetError, match=r"^--(fit|max-loss) cannot be met together with --(fit|max-loss): "
    ) as caught:
        run_search(search)
    assert {"--fit", "--max-loss"} <= set(caught.value.message.replace(":", "").split())
    assert "\n" not in caught.value.message


def test_sizes_are_on_the_grids_of_the_curve() -> None:
    for candidate in everything(SearchLimits())[::53]:
        assert candidate.sizes.vocab_size in (*CURVE.vocabulary, WHOLE.vocab_size)
        assert candidate.sizes.intermediate_size % 32 == 0
    assert Sizes(CURVE.vocabulary[0], WHOLE.intermediate_size) in {each.sizes for each in everything(SearchLimits())}
