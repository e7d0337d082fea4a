"""A tokenizer.model that someone made to break its reader: one error of ours, never a crash."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from compact.base.errors import CompactEdgeError, DamagedFileError, StorageError, UnsupportedTokenizerError
from compact.vocabulary.sentencepiece_model import pruned_model, read_model
from tests.sentencepiece_models import trained_model


def edited(change: Callable[[Any], object]) -> bytes:
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(trained_model())
    change(model)
    data: bytes = model.SerializeToString()
    return data


def wide_text(data: bytes) -> bytes:
    """The first piece's text as bytes that are no UTF-8."""
    return data.replace(b"<unk>", b"\xff\xfe\xfd\xfc\xfb", 1)


BROKEN: dict[str, tuple[bytes, type[CompactEdgeError], str]] = {
    "empty": (b"", DamagedFileError, "no pieces"),
    "text": (b"not a model at all\n" * 50, DamagedFileError, "not a SentencePiece model"),
    "pickle": (b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00", DamagedFileError, "not a SentencePiece model"),
    "cut in the middle": (trained_model()[:5000], DamagedFileError, "not a SentencePiece model"),
    "a length beyond the file": (b"\x0a\xff\xff\xff\xff\x0f" + trained_model(), DamagedFileError, "not a Sentence"),
    "groups in groups": (b"\x0b" * 100_000, DamagedFileError, "not a SentencePiece model"),
    "no UTF-8": (wide_text(trained_model()), DamagedFileError, "not UTF-8|not a SentencePiece model"),
    "unigram": (
        edited(lambda m: setattr(m.trainer_spec, "model_type", 1)),
        UnsupportedTokenizerError,
        "SentencePiece unigram model",
    ),
    "no pieces": (edited(lambda m: m.ClearField("pieces")), DamagedFileError, "no pieces"),
    "an empty piece": (edited(lambda m: setattr(m.pieces[300], "piece", "")), DamagedFileError, "without text"),
    "a repeated piece": (edited(lambda m: setattr(m.pieces[300], "piece", "<s>")), DamagedFileError, "twice"),
    "no unknown piece": (edited(lambda m: setattr(m.pieces[0], "type", 1)), DamagedFileError, "0 unknown pieces"),
    "two unknown pieces": (edited(lambda m: setattr(m.pieces[1], "type", 2)), DamagedFileError, "2 unknown pieces"),
    "a score that is no number": (
        edited(lambda m: setattr(m.pieces[300], "score", math.nan)),
        DamagedFileError,
        "not a finite number",
    ),
    "an infinite score": (
        edited(lambda m: setattr(m.pieces[9], "score", math.inf)),
        DamagedFileError,
        "not a finite number",
    ),
    "a byte piece that is no byte": (
        edited(lambda m: setattr(m.pieces[300], "type", 6)),
        DamagedFileError,
        "not a byte piece",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_it_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    data, error, word = BROKEN[case]
    path = tmp_path / "tokenizer.model"
    path.write_bytes(data)
    with pytest.raises(error, match=word) as caught:
        read_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a hole: no disk is used
    with pytest.raises(DamagedFileError, match="too large for a tokenizer"):
        read_model(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        read_model(tmp_path / "tokenizer.model")


def test_ids_in_the_specification_that_no_piece_has(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(
        edited(lambda m: (setattr(m.trainer_spec, "pad_id", 1 << 30), setattr(m.trainer_spec, "bos_id", -7)))
    )
    model = read_model(path)
    assert all(0 <= i < len(model.pieces) for i in model.special_ids)
    kept = list(range(300))
    out = pruned_model(model, kept, dict(enumerate(model.pieces)), {}, "test")
    pruned = sentencepiece_model_pb2.ModelProto()
    pruned.ParseFromString(out)
    assert (pruned.trainer_spec.pad_id, pruned.trainer_spec.bos_id) == (-1, -1)


@settings(max_examples=150)
@given(flips=st.lists(st.tuples(st.integers(0, len(trained_model()) - 1), st.integers(0, 255)), max_size=6),
       end=st.none() | st.integers(0, len(trained_model())))  # fmt: skip
def test_changed_bytes_never_crash(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]], end: int | None
) -> None:
    data = bytearray(trained_model())
    for at, value in flips:
        data[at] = value
    path = tmp_path_factory.getbasetemp() / "fuzzed.model"
    path.write_bytes(bytes(data[:end]))
    try:
        model = read_model(path)
    except CompactEdgeError:
        return
    out = pruned_model(model, range(len(model.pieces) // 2), dict(enumerate(model.pieces)), {}, "test")
    assert isinstance(out, bytes)
