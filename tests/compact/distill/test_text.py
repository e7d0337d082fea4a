"""The text to learn from: endless, mixed in equal shares, and never what is kept out."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest

from compact.base.errors import CalibrationError, DamagedFileError, UsageError
from compact.distill.text import Documents, TrainingText, check_texts, file_documents, in_memory, joined_records
from compact.texts import stdlib_text


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


def test_sources_give_equal_shares_and_begin_again_in_another_order() -> None:
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
    with pytest.raises(CalibrationError, match="nothing is left to learn from"):
        list(itertools.islice(text.pieces(), 100))


def _records_file(path: Path, texts: list[str]) -> Documents:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    else:
        pyarrow, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pyarrow.table({"id": list(range(len(texts))), "text": texts}), path, row_group_size=500)
    return file_documents(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_thousands_of_short_records_fill_pieces(name: str, tmp_path: Path) -> None:
    records = [f"{n:5d} is the number of this record, one of those of {n % 7} kinds." for n in range(5000)]
    assert {len(record) for record in records} == {60}
    documents = _records_file(tmp_path / name, records)
    text = TrainingText({name: documents}, 2048, 0)
    [held] = text.held_out
    taken = list(itertools.islice(text.pieces(), 100))
    assert all(len(piece) <= 2048 for piece in taken)
    assert sum(len(piece) < 1900 for piece in taken) <= 1  # the last of the file
    # Every record is whole, in the file's order within a piece, and behind a blank line.
    parts = [piece.split("\n\n") for piece in [*taken, held.text]]
    assert all(part in records for piece in parts for part in piece)
    assert all(records[records.index(piece[0]) :][: len(piece)] == piece for piece in parts[:-1])
    assert set(parts[-1]).isdisjoint(part for piece in parts[:-1] for part in piece)


def test_long_records_stay_as_they_are_and_short_ones_are_joined_around_them() -> None:
    long, three, four = _lines("x", 40), "three " * 20, "four " * 30
    records = ["one\n", " ", "two", long, three, "", four, "five " * 50]
    assert list(joined_records(records, 500)) == ["one\n\ntwo", long, f"{three}\n\n{four}", "five " * 50]
    assert list(joined_records([], 500)) == list(joined_records([" ", "\n"], 500)) == []


def test_joined_records_are_another_training_than_the_same_text_as_it_is() -> None:
    texts = [_lines("alpha", 9)] * 40
    plain, records = (TrainingText({"a": in_memory(texts, are_records=joined)}, 500, 0) for joined in (False, True))
    assert plain.id != records.id
    assert plain.described() == records.described()  # the text is the same


def test_a_damaged_parquet_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    _records_file(path, ["some text"] * 100)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DamagedFileError, match=r"a\.parquet: not a valid parquet file"):
        list(file_documents(path)())


def test_a_long_text_whose_first_pieces_are_all_kept_out_is_long_enough() -> None:
    long = _lines("alpha", 4000)
    first = TrainingText({"a": in_memory([long])}, 500, 0)
    out = [piece for piece in first._pieces("a") if piece in first._kept_out]
    assert sum(map(len, out)) >= 3000
    text = TrainingText({"a": in_memory([*out, long])}, 500, 0)
    assert text._kept_out == first._kept_out
    assert not set(out) & set(itertools.islice(text.pieces(), 500))


def test_what_stdlib_is_judged_by_is_no_part_of_it() -> None:
    kept_out, others = stdlib_text.apart(3000)
    text = TrainingText({"stdlib": in_memory(["\n\n".join(others)], kept_out=kept_out)}, 2048, 0)
    assert 3000 <= len(text.held_out[0].text) <= 5000
    whole = "\n".join(text._pieces("stdlib"))
    squeezed = " ".join(whole.split())
    for document in kept_out:
        assert document in text.held_out[0].text
        # No paragraph of a docstring or of code, however it is indented.
        for paragraph in (" ".join(part.split()) for part in document.split("\n\n")):
            assert len(paragraph) < 150 or paragraph not in squeezed, paragraph
    everything = "".join(stdlib_text.documents("stdlib"))
    assert 0.97 < len(whole) / len(everything) < 1


def test_stdlib_with_its_own_part_is_refused() -> None:
    with pytest.raises(UsageError, match="stdlib-prose: is part of stdlib"):
        check_texts(("stdlib", "stdlib-prose"))
    check_texts(("stdlib-prose", "self"))


def test_how_often_a_text_was_gone_through() -> None:
    text = _text()
    stream = text.pieces()
    pieces = len(set(text._pieces("a.txt")) - text._kept_out)
    for _ in range(pieces):
        next(stream)
    assert text.passes() == {}
    taken = [next(stream) for _ in range(4 * pieces)]
    times = (pieces + len(taken)) / 2 / pieces
    assert text.passes()["a.txt"] == pytest.approx(times, rel=0.05)
