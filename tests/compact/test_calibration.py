"""The calibration set: what is read, drawn and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from compact.calibration import BUILT_IN, cut, make_calibration, read_documents, retokenise, split_stream
from compact.errors import CalibrationError, CompactEdgeError, DamagedFileError, StorageError
from tests.checkpoints import TEXTS, write_checkpoint

DOCUMENTS = [f"{n}: {text}\n" for n, text in enumerate(TEXTS * 4)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("calibration") / "m", bos=True)


@pytest.fixture(scope="module")
def jsonl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "a.jsonl"
    path.write_text("".join(json.dumps({"text": d}) + "\n" for d in DOCUMENTS), encoding="utf-8")
    return path


def test_ids_are_those_of_the_tokenizer(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(TEXTS[2], encoding="utf-8")
    made = make_calibration(str(path), model, tokens=10_000, sequence_length=64)
    ids = Tokenizer.from_file(str(model / "tokenizer.json")).encode(TEXTS[2]).ids
    assert ids[0] == 1  # BOS
    assert [i for sequence in made.sequences for i in sequence] == ids
    assert made.texts == (TEXTS[2],)
    assert {len(sequence) for sequence in made.sequences[:-1]} <= {64}


def test_a_seed_draws_the_same_again_and_another_draws_others(model: Path, jsonl: Path) -> None:
    first, again = (make_calibration(str(jsonl), model, tokens=300, sequence_length=64, seed=3) for _ in range(2))
    other = make_calibration(str(jsonl), model, tokens=300, sequence_length=64, seed=4)
    assert first == again
    assert first.sequences != other.sequences
    assert first.id != other.id
    assert set(first.texts) != set(other.texts), "not only the order, also the pieces differ"


@pytest.mark.parametrize("tokens", [16, 100, 301])
def test_no_more_tokens_than_asked_for(model: Path, jsonl: Path, tokens: int) -> None:
    made = make_calibration(str(jsonl), model, tokens=tokens, sequence_length=64)
    assert made.n_tokens == tokens
    assert made.options == {"tokens": tokens, "sequence_length": 64, "seed": 0}


def test_the_kind_of_file_does_not_matter(model: Path, tmp_path: Path, jsonl: Path) -> None:
    pyarrow, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet, context = tmp_path / "a.parquet", tmp_path / "b.jsonl"
    pq.write_table(pyarrow.table({"id": list(range(len(DOCUMENTS))), "text": DOCUMENTS}), parquet)
    context.write_text("\n".join(json.dumps({"context": d, "n": 1}) for d in DOCUMENTS), encoding="utf-8")
    sets = [make_calibration(str(p), model, tokens=300, sequence_length=64) for p in (jsonl, parquet, context)]
    assert sets[0].sequences == sets[1].sequences == sets[2].sequences
    text = "".join(DOCUMENTS)
    for path, content in (("c.txt", text), ("c.jsonl", json.dumps({"text": text}))):
        (tmp_path / path).write_text(content, encoding="utf-8")
    pq.write_table(pyarrow.table({"text": [text, None]}), tmp_path / "c.parquet")
    whole = [
        make_calibration(str(tmp_path / f"c.{kind}"), model, tokens=300, sequence_length=64)
        for kind in ("txt", "jsonl", "parquet")
    ]
    assert whole[0].sequences == whole[1].sequences == whole[2].sequences


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", ""), ("a.txt", " \n\t\n"), ("a.jsonl", ""), ("a.jsonl", '{"text": ""}\n\n{"text": "  "}\n')],
)
def test_a_file_without_text(model: Path, tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(CalibrationError, match="no text in it"):
        make_calibration(str(tmp_path / name), model, tokens=100, sequence_length=64)


def test_a_text_that_is_too_short(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a b")
    with pytest.raises(CalibrationError, match=r"only \d tokens of text"):
        make_calibration(str(tmp_path / "a.txt"), model, tokens=100, sequence_length=64)


def test_a_name_that_is_no_file(model: Path) -> None:
    with pytest.raises(CalibrationError, match="no such file") as caught:
        make_calibration("stdlib-prosa", model, tokens=100, sequence_length=64)
    assert caught.value.hint is not None
    assert all(name in caught.value.hint for name in BUILT_IN)


@pytest.mark.parametrize(
    "line",
    [
        b'{"content": "x"}',
        b'{"text": 7}',
        b'["text"]',
        b'"text"',
        b'{"text": ',
        b'{"text": "half a pair \\ud83d"}',
        b"[" * 100_000,
        b"7",
    ],
    ids=["no field", "a number", "a list", "a string", "cut", "a lone surrogate", "nested too deep", "no object"],
)
def test_a_bad_record_names_its_line(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' + line + b"\n")
    with pytest.raises(DamagedFileError, match=r"a\.jsonl:3: "):
        read_documents(path)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_bytes_that_are_no_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\xff\xfe\x00PAR1" * 20)
    with pytest.raises(DamagedFileError):
        read_documents(tmp_path / name)


def test_a_parquet_file_without_the_column(tmp_path: Path) -> None:
    pyarrow, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pyarrow.table({"content": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(DamagedFileError, match="no column 'text' or 'context'"):
        read_documents(tmp_path / "a.parquet")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.txt", tmp_path):
        with pytest.raises(StorageError):
            read_documents(path)


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_texts(model: Path, name: str) -> None:
    first, again = (make_calibration(name, model, tokens=400, sequence_length=64) for _ in range(2))
    assert first == again
    assert first.n_tokens == 400
    assert make_calibration(name, model, tokens=400, sequence_length=64, seed=1).sequences != first.sequences


def test_prose_shows_the_chat_template_s_specials(model: Path) -> None:
    made = make_calibration("stdlib-prose", model, tokens=4000, sequence_length=64)
    ids = [i for sequence in made.sequences for i in sequence]
    assert 2 in ids  # <|im_end|>, which only the template writes
    chats = [text for text in made.texts if "<|im_start|>user" in text]
    assert 0 < len(chats) < len(made.texts) / 4


@given(document=st.text(), size=st.integers(1, 50))
def test_pieces_are_the_document(document: str, size: int) -> None:
    pieces = cut(document, size)
    assert "".join(pieces) == document
    assert all(0 < len(piece) <= size for piece in pieces)


@given(stream=st.lists(st.integers()), length=st.integers(1, 20))
def test_sequences_are_the_stream(stream: list[int], length: int) -> None:
    sequences = split_stream(stream, length)
    assert [i for sequence in sequences for i in sequence] == stream
    assert all(len(sequence) == length for sequence in sequences[:-1])


def test_the_same_texts_for_another_tokenizer(model: Path, tmp_path: Path) -> None:
    sequences = retokenise([TEXTS[0], TEXTS[1]], model, sequence_length=32)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    assert [i for s in sequences for i in s] == tokenizer.encode(TEXTS[0]).ids + tokenizer.encode(TEXTS[1]).ids


def test_a_tokenizer_that_cannot_be_loaded_is_damaged_data(model: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    (tmp_path / "config.json").write_text((model / "config.json").read_text())
    with pytest.raises(CompactEdgeError) as caught:
        make_calibration("stdlib", tmp_path, tokens=100, sequence_length=64)
    assert isinstance(caught.value, DamagedFileError)
    assert "\n" not in caught.value.message
