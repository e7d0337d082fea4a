"""From names to text: how much is drawn of a data set, and what of it is written down."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compact.base.cache import Cache
from compact.distill import sources
from compact.distill.sources import training_text
from compact.distill.text import TrainingText
from compact.pruning.recover_options import PIECE_TOKENS, RecoverOptions
from compact.sources.model_source import open_source

COMMIT = "0123456789abcdef" * 2 + "01234567"
NAME = "org/texts:en"

Draw = Callable[[int | None, str], tuple[TrainingText, dict[str, Any]]]
Write = Callable[[dict[str, Any], str], int]


@pytest.fixture
def draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Draw:
    """The text of a data set for a budget in tokens and a device, and what was asked of the Hub."""
    asked: dict[str, Any] = {}

    def records(name: Any, characters: int, piece: int, seed: int, **named: Any) -> tuple[list[str], str]:
        asked.update(named, characters=characters)
        return [f"Record {n} has a sentence of its own, and no more." for n in range(2000)], name.at(COMMIT)

    monkeypatch.setattr("compact.distill.text.require_datasets", lambda word, option: None)
    monkeypatch.setattr(sources, "draw_documents", records)
    cache = Cache(tmp_path, [], [])

    def drawn(tokens: int | None, device: str) -> tuple[TrainingText, dict[str, Any]]:
        options = RecoverOptions(text=(NAME,), tokens=tokens)
        text = training_text(open_source("tiny", cache), options, cache, seed=0, device=device)
        return text, dict(asked)

    return drawn


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """How many tokens the model writes for a budget and a device, where it writes one of two texts."""
    asked: list[int] = []

    def write(directory: Path, tokens: int, **named: Any) -> list[str]:
        asked.append(tokens)
        return [f"Text {n} is of the model's own making, and long enough to learn from." for n in range(400)]

    monkeypatch.setattr(sources, "sample_texts", write)
    cache = Cache(tmp_path, [], [])

    def tokens_for(budget: dict[str, Any], device: str) -> int:
        options = RecoverOptions(text=("self", "stdlib-prose"), **budget)
        training_text(open_source("tiny", cache), options, cache, seed=0, device=device)
        return asked.pop()

    return tokens_for


def test_a_data_set_is_named_with_its_commit_and_cut_into_records(draw: Draw) -> None:
    text, asked = draw(None, "cpu")
    assert asked["option"] == "--recover-text"  # what a message about it names
    [described] = text.described()
    assert described["name"] == f"org/texts@{COMMIT}:en:train"
    assert [held.name for held in text.held_out] == [NAME]
    assert all(line == "" or line.endswith("no more.") for line in text.held_out[0].text.split("\n"))
    assert len(next(text.pieces())) > 900


def test_as_much_is_drawn_of_a_data_set_as_is_learned_from(draw: Draw) -> None:
    for device in ("cpu", "cuda"):
        _, asked = draw(70_000, device)
        assert 3 * 70_000 <= asked["characters"] <= 6 * 70_000


def test_without_a_budget_a_slow_device_draws_less_of_a_data_set(draw: Draw) -> None:
    cpu, cuda, mps = (draw(None, device)[1]["characters"] for device in ("cpu", "cuda", "mps"))
    assert 0 < cpu < cuda == mps


def test_the_model_writes_its_share_of_the_budget(written: Write) -> None:
    assert written({"tokens": 60_000}, "cpu") == 30_000
    assert written({"minutes": 30.0, "tokens": 20_000}, "cpu") == 10_000


def test_what_the_model_writes_takes_a_part_of_the_minutes_of_a_slow_device(written: Write) -> None:
    short, long, quick = (
        written({"minutes": minutes}, device) for minutes, device in ((15.0, "cpu"), (30.0, "cpu"), (30.0, "cuda"))
    )
    assert 0 < short < long < quick


def test_the_model_writes_no_more_for_a_very_large_budget_and_enough_for_a_small_one(written: Write) -> None:
    assert written({"tokens": 10_000_000}, "cpu") == written({"tokens": 20_000_000}, "cpu") > 30_000
    # One piece to learn from and one to judge by.
    assert written({"tokens": 100}, "cpu") >= 2 * PIECE_TOKENS
