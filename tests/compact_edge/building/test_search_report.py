"""How the sizes of a build were found: tables, notes of the card and plots, on any terminal."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from compact_edge.building.search_report import card_note, print_search, print_table, search_plot
from compact_edge.front.describe import limit_words, place_on_front

HEADER = ("", "vocab_size", "intermediate_size", "parameters", "file", "stdlib", "mean", "worst")
ROW = ("unpruned", "151936", "4864", "494.03M", "397.81 MB", "0.853", "+10.3%", "+12.7%")


@pytest.mark.parametrize("columns", ["60", "80", "200", None])
def test_no_figure_is_cut_short(
    columns: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_table("What each size costs", HEADER, [ROW], ["a note"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if "151936" in line] == [" ".join(ROW).split()]
    assert not any("…" in line for line in lines)
    assert lines[-1] == "a note"


PREDICTED = {
    "budget": {"ratio": 0.3, "fit_bytes": None},
    "held_out_bytes": {"prose": 4000},
    "unpruned": {"vocab_size": 1000, "intermediate_size": 512, "bits_per_byte": {"prose": 1.0}},
    "predicted": {
        "vocab_size": 500,
        "intermediate_size": 448,
        "vocabulary_share": 0.712,
        "loss": 0.0209,
        "loss_of_vocabulary_alone": 0.004,
        "loss_of_ffn_alone": 0.0163,
    },
    "measured": [],
}


def point(kind: str, sizes: tuple[int, int], n_bytes: int, loss: float, *, measured: bool = True) -> dict[str, Any]:
    return {
        "vocab_size": sizes[0],
        "intermediate_size": sizes[1],
        "parameters": 1000,
        "type": kind,
        "bytes": n_bytes,
        "memory_bytes": None,
        "characters_per_second": None,
        "tokens_per_second": None,
        "predicted_loss": loss,
        "loss": loss,
        "measured": measured,
        **({"bits_per_byte": {"prose": 1 + loss}, "worst_text_loss": loss, "loss_on_texts": loss} if measured else {}),
    }


def front(*, chosen: int = 1, **limits: Any) -> dict[str, Any]:
    """A record of a search for at most 20 MB."""
    cut, other = point("Q4_K_M", (500, 512), 18_000_000, 0.031), point("IQ4_NL", (700, 512), 19_900_000, 0.034)
    small = point("IQ3_XXS", (500, 256), 9_000_000, 0.4, measured=False)
    whole = point("IQ3_M", (1000, 512), 19_000_000, 0.029)
    return {
        "kind": "front",
        "limits": {"fit_bytes": 20_000_000, "memory_bytes": None, "min_speed": None, "max_loss": None, **limits},
        "held_out_bytes": {"prose": 4000},
        "unpruned": {"vocab_size": 1000, "intermediate_size": 512, "bits_per_byte": {"prose": 1.0}},
        "types": ["Q4_K_M", "IQ4_NL", "IQ3_XXS", "IQ3_M"],
        "candidates": 12345,
        "measured": [cut, other, whole],
        "chosen": chosen,
        "no_cut": whole,
        "front": [small, cut, whole],
    }


def test_a_predicted_split_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_search(PREDICTED)
    (line,) = capsys.readouterr().out.splitlines()
    assert line == (
        "sizes: 71% of the removed parameters from the vocabulary (predicted loss +2.1%; vocabulary alone +0.4%, "
        "FFN alone +1.6%)"
    )
    assert line in (card_note(PREDICTED) or "")
    assert search_plot(PREDICTED, "model") is None


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (0, "on the front: no file of this size is predicted to lose less"),
        (1, "not on the front: IQ3_M at 19.0 MB with vocab_size 1000 and intermediate_size 512 is predicted"),
        (2, "no cut: IQ3_M at 19.0 MB loses less than any cut that is as small"),
    ],
)
def test_a_search_of_types_says_where_the_file_is(chosen: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    search = front(chosen=chosen)
    assert place_on_front(search).startswith(words)
    print_search(search)
    shown = capsys.readouterr().out
    assert "--fit 20.0 MB" in shown and words in shown
    (line,) = (line for line in shown.splitlines() if line.strip().startswith("chosen"))
    assert search["measured"][chosen]["type"] in line
    note = card_note(search) or ""
    assert "12,345" in note and "3 files measured" in note and words in note


def test_all_limits_are_named() -> None:
    limits = front(memory_bytes=64_000_000, min_speed={"value": 30.0, "unit": "tokens"}, max_loss=0.03)["limits"]
    assert limit_words(limits) == "--fit 20.0 MB --max-memory 64.0 MB --min-speed 30 tokens/s --max-loss 3%"


def test_the_plot_of_a_search_marks_measured_files_and_whole_models() -> None:
    drawn = search_plot(front(), "<model> & co")
    assert drawn is not None and drawn[0] == "front.svg"
    svg = "{http://www.w3.org/2000/svg}"
    drawing = ElementTree.fromstring(drawn[1])
    marks = [one.get("class") or "" for one in drawing.iter(f"{svg}circle")]
    assert sum("hollow" in each for each in marks) == 1 and sum("ring" in each for each in marks) == 3
    words = [one.text or "" for one in drawing.iter(f"{svg}text")]
    assert any("<model> & co" in each for each in words) and "chosen" in words


def test_a_record_of_another_version_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    print_search({"found": 1})
    assert capsys.readouterr().out == ""
    assert card_note({"found": 1}) is None and search_plot({"found": 1}, "model") is None
