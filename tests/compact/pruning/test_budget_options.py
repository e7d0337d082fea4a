"""The budget options: what they parse, and which of them exclude each other."""

from __future__ import annotations

from typing import Any

import pytest

from compact.base.errors import UsageError
from compact.pruning.budget import Limits, sizes_for_ratio
from compact.pruning.budget_options import (
    AUTO,
    PROPORTIONAL,
    MinSpeed,
    check_budget,
    given_limits,
    has_limits,
    is_searched,
    parse_loss,
    parse_speed,
    parse_split,
)
from compact.pruning.options import PruneOptions, options_as_json
from tests.compact.budgets import SHAPES, parts_of

SPEED = MinSpeed(20.0, "characters")
EVERY_LIMIT: dict[str, Any] = {"fit_bytes": 9, "max_memory_bytes": 9, "max_loss": 0.03, "min_speed": SPEED}


@pytest.mark.parametrize(("words", "share"), [("3%", 0.03), ("0.03", 0.03), (" 0.5% ", 0.005), (".1", 0.1)])
def test_a_loss_is_a_share(words: str, share: float) -> None:
    assert parse_loss(words) == pytest.approx(share)


@pytest.mark.parametrize("words", ["", "0", "0%", "3", "100%", "1", "-3%", "nan", "3%%", "3 %", "1e-2", "٣%"])
def test_other_losses_are_refused(words: str) -> None:
    with pytest.raises(UsageError, match=r"--max-loss .*: expected a share above 0% and below 100%") as caught:
        parse_loss(words)
    assert caught.value.hint == "write it as 3% or 0.03"


@pytest.mark.parametrize(
    ("words", "speed"),
    [
        ("20", SPEED),
        ("20c/s", SPEED),
        ("20 characters/s", SPEED),
        (" 20C/S ", SPEED),
        ("8t/s", MinSpeed(8.0, "tokens")),
        ("8.5tokens/s", MinSpeed(8.5, "tokens")),
        (".5", MinSpeed(0.5, "characters")),
    ],
)
def test_a_speed_without_a_unit_is_in_characters(words: str, speed: MinSpeed) -> None:
    assert parse_speed(words) == speed


@pytest.mark.parametrize("words", ["", "0", "0t/s", "-1", "t/s", "8t", "8tok/s", "8/s", "inf", "nan", "1e3", "8t/s/s"])
def test_other_speeds_are_refused(words: str) -> None:
    with pytest.raises(UsageError, match=r"--min-speed .*: expected a speed above 0") as caught:
        parse_speed(words)
    assert caught.value.hint == "write 20 for characters/s, or 8t/s for tokens/s"


def test_limits_go_together_and_are_searched() -> None:
    for changes in (*({name: value} for name, value in EVERY_LIMIT.items()), EVERY_LIMIT):
        options = PruneOptions(**changes)
        check_budget(options)
        assert has_limits(options)
        assert is_searched(options)
        check_budget(PruneOptions(**changes, split=AUTO, search_minutes=30))
    assert given_limits(PruneOptions(**EVERY_LIMIT)) == ("--fit", "--max-memory", "--min-speed", "--max-loss")


def test_without_a_limit_only_the_split_decides_about_a_search() -> None:
    for split, searched in ((None, False), (PROPORTIONAL, False), ("70:30", False), (AUTO, True)):
        options = PruneOptions(ratio=0.2, split=split)
        check_budget(options)
        assert not has_limits(options)
        assert is_searched(options) is searched


def test_fixed_shares_of_a_file_size_are_not_searched() -> None:
    options = PruneOptions(fit_bytes=9, split="70:30")
    check_budget(options)
    assert not is_searched(options)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"max_memory_bytes": 9, "ratio": 0.2}, "--ratio and --max-memory exclude each other"),
        ({"min_speed": SPEED, "ratio": 0.2}, "--ratio and --min-speed exclude each other"),
        ({"max_loss": 0.03, "vocab_size": 300}, "--max-loss and explicit sizes exclude each other"),
        ({"max_loss": 0.03, "vocab_coverage": 0.9}, "--max-loss and explicit sizes exclude each other"),
        ({"max_memory_bytes": 9, "intermediate_size": 8}, "--max-memory and explicit sizes exclude each other"),
        ({"fit_bytes": 9, "split": PROPORTIONAL}, "--split proportional and --fit exclude each other"),
        ({"max_loss": 0.03, "split": PROPORTIONAL}, "--split proportional and --max-loss exclude each other"),
        ({"max_loss": 0.03, "split": "70:30"}, "--split 70:30 and --max-loss exclude each other"),
        ({"fit_bytes": 9, "min_speed": SPEED, "split": "1:0"}, "--split 1:0 and --min-speed exclude each other"),
        ({"vocab_size": 300, "split": PROPORTIONAL}, "--split and explicit sizes exclude each other"),
        ({"search_minutes": 5}, "--search-minutes: nothing is searched"),
        ({"search_minutes": 5, "ratio": 0.2, "split": PROPORTIONAL}, "--search-minutes: nothing is searched"),
        ({"search_minutes": 5, "fit_bytes": 9, "split": "70:30"}, "--search-minutes: nothing is searched"),
        ({"search_minutes": 5, "vocab_size": 300}, "--search-minutes: nothing is searched"),
        ({"search_minutes": 0, "max_loss": 0.03}, "--search-minutes 0: must be above 0"),
        ({"search_minutes": float("nan"), "split": AUTO}, "--search-minutes nan: must be above 0"),
        ({"search_minutes": float("inf"), "split": AUTO}, "--search-minutes inf: must be above 0"),
    ],
)
def test_options_that_exclude_each_other(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_budget(PruneOptions(**changes))
    assert caught.value.message == problem
    assert caught.value.hint


@pytest.mark.parametrize("name", ["smollm2-135m", "qwen2.5-0.5b"])
@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.35])
def test_proportional_takes_twice_the_share_from_the_vocabulary(name: str, ratio: float) -> None:
    vocab, inner, hidden, layers, tied, kv = SHAPES[name]
    parts = parts_of(vocab, inner, hidden, layers, tied=tied, kv=kv)
    split = parse_split("Proportional")
    assert split == PROPORTIONAL
    sizes = sizes_for_ratio(ratio, parts, Limits(vocab, inner, 300), split)
    lost_rows, lost_channels = 1 - sizes.vocab_size / vocab, 1 - sizes.intermediate_size / inner
    # The vocabulary size comes from a grid of 64 sizes.
    assert lost_rows == pytest.approx(2 * lost_channels, abs=0.02)


def test_the_manifest_lists_every_limit() -> None:
    values = options_as_json(PruneOptions(**EVERY_LIMIT, search_minutes=30.0))
    assert values["min_speed"] == {"value": 20.0, "unit": "characters"}
    assert (values["max_memory_bytes"], values["max_loss"], values["search_minutes"]) == (9, 0.03, 30.0)
