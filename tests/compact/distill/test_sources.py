"""From names to text: how much is drawn of a data set, and what of it is written down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compact.cache import Cache
from compact.distill import sources
from compact.distill.options import RecoverOptions
from compact.distill.sources import training_text
from compact.source import open_source

COMMIT = "0123456789abcdef" * 2 + "01234567"
NAME = "org/texts:en"


@pytest.mark.parametrize(
    ("tokens", "device", "drawn"),
    [(None, "cpu", 1_000_000), (None, "cuda", 10_000_000), (None, "mps", 10_000_000), (70_000, "cuda", 70_000)],
)
def test_a_data_set(
    tokens: int | None, device: str, drawn: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def draw(name: Any, characters: int, piece: int, seed: int, **named: Any) -> tuple[list[str], str]:
        asked.update(named, characters=characters)
        return [f"Record {n} has a sentence of its own, and no more." for n in range(2000)], name.at(COMMIT)

    monkeypatch.setattr("compact.distill.text.require_datasets", lambda word, option: None)
    monkeypatch.setattr(sources, "draw_documents", draw)
    cache = Cache(tmp_path, [], [])
    options = RecoverOptions(text=(NAME,), tokens=tokens)
    text = training_text(open_source("tiny", cache), options, cache, seed=0, device=device)
    assert asked["characters"] == 4 * drawn
    assert asked["option"] == "--recover-text"  # what a message about it names
    [described] = text.described()
    assert described["name"] == f"org/texts@{COMMIT}:en:train"
    assert [held.name for held in text.held_out] == [NAME]
    assert all(line == "" or line.endswith("no more.") for line in text.held_out[0].text.split("\n"))
    assert len(next(text.pieces())) > 1900


@pytest.mark.parametrize(
    ("budget", "device", "written"),
    [
        ({"tokens": 60_000}, "cpu", 30_000),  # one of two texts
        ({"tokens": 10_000_000}, "cpu", 131_072),
        ({"minutes": 30.0}, "cpu", 30_000),
        ({"minutes": 30.0}, "cuda", 131_072),
        ({"minutes": 30.0, "tokens": 20_000}, "cpu", 10_000),
        ({"tokens": 100}, "cpu", 2048),
    ],
)
def test_the_model_writes_its_share_of_the_budget(
    budget: dict[str, Any], device: str, written: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def write(directory: Path, tokens: int, **named: Any) -> list[str]:
        asked.append(tokens)
        return [f"Text {n} is of the model's own making, and long enough to learn from." for n in range(400)]

    monkeypatch.setattr(sources, "sample_texts", write)
    cache = Cache(tmp_path, [], [])
    options = RecoverOptions(text=("self", "stdlib-prose"), **budget)
    training_text(open_source("tiny", cache), options, cache, seed=0, device=device)
    assert asked == [written]
