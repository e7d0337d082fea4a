"""The text to learn from: endless, mixed in equal shares, and never what is kept out."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest

from compact.errors import CalibrationError, DamagedFileError
from compact.recovery.text import TrainingText, file_documents, in_memory


def _lines(word: str, count: int) -> str:
    return "".join(f"{word} line number {n} of the text, which says little else than {n * n}.\n" for n in range(count))


def _text(seed: int = 0) -> TrainingText:
    sources = {"a.txt": in_memory([_lines("alpha", 900)]), "b.txt": in_memory([_lines("beta", 2000)])}
    return TrainingText(sources, 500, seed)


def test_what_is_kept_out_never_comes() -> None:
    text = _text()
    assert [held.name for held in text.held_out] == ["a.txt", "b.txt"]
    assert all(500 <= len(held.text) <= 6_500 for held in text.held_out)
    taken = list(itertools.islice(text.pieces(), 1000))  # several passes over both
    out = {line for held in text.held_out for line in held.text.splitlines()}
    assert out.isdisjoint(line for piece in taken for line in piece.splitlines())
    assert _text(seed=5).held_out == text.held_out


def test_sources_give_equal_shares_and_begin_anew_in_another_order() -> None:
    text = _text()
    taken = list(itertools.islice(text.pieces(), 1000))
    characters = Counter({word: sum(len(p) for p in taken if p.startswith(word)) for word in ("alpha", "beta")})
    assert abs(characters["alpha"] - characters["beta"]) <= 1000
    alphas = [piece for piece in taken if piece.startswith("alpha")]
    epoch = len(set(alphas))
    assert sorted(alphas[:epoch]) == sorted(alphas[epoch : 2 * epoch])
    assert alphas[:epoch] != alphas[epoch : 2 * epoch]


def test_the_seed_is_the_order() -> None:
    first, again, other = (list(itertools.islice(_text(seed).pieces(), 50)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert _text(1).id == _text(1).id != _text(2).id


def test_every_kind_of_file(tmp_path: Path) -> None:
    plain, records = tmp_path / "a.txt", tmp_path / "b.jsonl"
    plain.write_text(_lines("é", 40_000), encoding="utf-8")  # several blocks
    records.write_text("".join(json.dumps({"text": _lines("x", 9)}) + "\n" for _ in range(30)), encoding="utf-8")
    assert "".join(file_documents(plain)()) == plain.read_text(encoding="utf-8")
    assert len(list(itertools.islice(file_documents(plain)(), 2))) == 2
    assert list(file_documents(records)()) == [_lines("x", 9)] * 30


def test_a_text_too_short_or_damaged_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="too short"):
        TrainingText({"a.txt": in_memory(["hello"])}, 500, 0)
    broken = tmp_path / "b.jsonl"
    broken.write_text('{"text": "good"}\n{"no": 1}\n')
    with pytest.raises(DamagedFileError, match=r"b\.jsonl:2"):
        list(file_documents(broken)())
    broken.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DamagedFileError, match="UTF-8"):
        list(file_documents(broken.rename(tmp_path / "c.txt"))())


def test_another_text_is_another_run_wherever_it_differs(tmp_path: Path) -> None:
    ids = set()
    for folder, last in (("a", "one"), ("b", "two")):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "same.txt"
        path.write_text(_lines("alpha", 900) + last, encoding="utf-8")
        ids.add(TrainingText({str(path): file_documents(path)}, 500, 0).id)
        ids.add(TrainingText({"same.txt": in_memory([_lines("alpha", 900) + last])}, 500, 0).id)
    assert len(ids) == 4


def test_a_text_whose_every_piece_judges_another_ends_the_stream() -> None:
    long = _lines("alpha", 900)
    [held] = TrainingText({"long": in_memory([long])}, 500, 0).held_out
    pieces = [held.text[at : at + 400] for at in (0, 400)]
    text = TrainingText({"a": in_memory([*pieces, long]), "b": in_memory([*pieces, "x" * 100])}, 500, 0)
    text._kept_out = frozenset([*text._kept_out, *pieces, "x" * 100])
    with pytest.raises(CalibrationError, match="nothing to learn from"):
        list(itertools.islice(text.pieces(), 100))
