"""The bytes of every token, against the offsets of the tokenizers library and what llama.cpp makes of single tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from compact.base.errors import DamagedFileError, DataError, UnsupportedTokenizerError
from compact.checkpoints.gguf_file import read_gguf
from compact.sources.from_gguf_tokenizer import read_gguf_pieces
from compact.vocabulary.language_costs import SENTENCES
from compact.vocabulary.token_pieces import TokenPieces, read_pieces
from exporters.llamacpp.engine import LlamaEngine
from tests.checkpoints import TEXTS, train_tokenizer
from tests.sentencepiece_models import EXACT, STYLES, tokenizer_files, tokenizer_json
from tests.vocabularies import write_tokenizer, write_vocabulary

HARD = (*TEXTS, *SENTENCES.values(), "a<tool>b", "  two <tool>  spaces", "\n", " ", "<tool>", "e\u0301", "▁mark")


def documents() -> Mapping[str, dict[str, Any]]:
    return {"byte-level": train_tokenizer(), **{style: tokenizer_json(style, bos=False) for style in STYLES}}


def pieces_of(document: dict[str, Any], folder: Path) -> TokenPieces:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return read_pieces(path)


def ends_by_offsets(encoding: Any, text: str) -> dict[int, int]:
    """Token -> its end in bytes by the library's offsets, where it shares no character with the next token."""
    starts = [*(start for start, _ in encoding.offsets[1:]), len(text)]
    return {
        index: len(text[:stop].encode())
        for index, ((_, stop), following) in enumerate(zip(encoding.offsets, starts, strict=True))
        if following >= stop
    }


@pytest.mark.parametrize("style", ["byte-level", *STYLES])
def test_ends_are_those_of_the_offsets(style: str, tmp_path: Path) -> None:
    document = documents()[style]
    tokenizer, pieces = Tokenizer.from_str(json.dumps(document)), pieces_of(document, tmp_path)
    for text in HARD:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        if text == "▁mark" and style != "byte-level":  # read as " mark"
            with pytest.raises(DataError, match="from byte 0"):
                pieces.ends(encoding.ids, text)
            continue
        ends = pieces.ends(encoding.ids, text)
        assert len(ends) == len(encoding.ids)
        assert ends[-1] == len(text.encode())
        known = ends_by_offsets(encoding, text)
        assert len(known) >= len(ends) // 3
        for index, end in known.items():
            assert ends[index] == end, (text, encoding.tokens[index])


BYTE_LEVEL = train_tokenizer()
BYTE_LEVEL_TOKENIZER = Tokenizer.from_str(json.dumps(BYTE_LEVEL))


@given(st.text(max_size=60))
def test_pieces_of_any_text_are_the_text(text: str) -> None:
    ids = BYTE_LEVEL_TOKENIZER.encode(text, add_special_tokens=False).ids
    spelling = {i: token for token, i in BYTE_LEVEL["model"]["vocab"].items()}
    added = frozenset(entry["id"] for entry in BYTE_LEVEL["added_tokens"])
    spelling |= {entry["id"]: entry["content"] for entry in BYTE_LEVEL["added_tokens"]}
    pieces = TokenPieces(spelling, added, sentencepiece=False, where="test")
    ends = pieces.ends(ids, text).tolist()
    assert b"".join(pieces.bytes_of(i) for i in ids) == text.encode()
    assert ends == sorted(ends)
    assert [end for end in ends if end > len(text.encode())] == []


@pytest.mark.parametrize("style", ["byte-level", *EXACT])
def test_a_ggufs_tokens_are_those_of_llama_cpp(style: str, tmp_path: Path) -> None:
    """Every token of the vocabulary stands for the bytes that llama.cpp writes for it."""
    files = {"generation_config.json": '{"eos_token_id": 0}'} if style == "byte-level" else tokenizer_files(style)
    directory = write_tokenizer(tmp_path / "model", documents()[style], files)
    path = write_vocabulary(directory, tmp_path / "vocabulary.gguf")
    pieces = read_gguf_pieces(read_gguf(path).values, str(path))
    of_checkpoint = read_pieces(directory / "tokenizer.json")
    with LlamaEngine(path, vocab_only=True) as engine:
        texts = [text for text in HARD if text != "▁mark"]
        for text, ids in zip(texts, engine.tokenize(texts, parse_special=True), strict=True):
            ends = pieces.ends(ids, text).tolist()
            for token_id, begin, end in zip(ids, [0, *ends], ends, strict=False):
                written = engine.detokenize([token_id])
                in_text = text.encode()[begin:end]
                # A space in front is no byte of the text where llama.cpp put it there.
                assert written == in_text or written == b" " + in_text, (text, token_id)
        for token_id in sorted(pieces.spelling):
            assert pieces.bytes_of(token_id) == engine.detokenize([token_id])
    # What is worth keeping is spelled as tokenizer.json has it.
    assert {pieces.spelling[i] for i in pieces.spelling} >= set(documents()[style]["model"]["vocab"])
    assert pieces.known == of_checkpoint.known


def test_a_text_that_the_tokenizer_changes_is_refused(tmp_path: Path) -> None:
    document = {**train_tokenizer(), "normalizer": {"type": "NFC"}}
    pieces, tokenizer = pieces_of(document, tmp_path), Tokenizer.from_str(json.dumps(document))
    for text in ("plain", "Caf\u00e9"):
        assert pieces.ends(tokenizer.encode(text).ids, text)[-1] == len(text.encode())
    text = "a Cafe\u0301 here"
    with pytest.raises(DataError, match=r"do not spell the text from byte \d") as caught:
        pieces.ends(tokenizer.encode(text).ids, text)
    assert "\n" not in caught.value.message and "NFC" in str(caught.value.hint)
    with pytest.raises(DataError, match="from byte 5"):
        pieces.ends(tokenizer.encode("plain").ids, "plain text")


def test_an_id_without_a_token(tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError, match="no token has id 99999"):
        pieces_of(train_tokenizer(), tmp_path).ends([99999], "a")


def test_another_kind_of_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedTokenizerError, match="WordPiece"):
        read_gguf_pieces({"tokenizer.ggml.model": "bert"}, "x.gguf")
    with pytest.raises(UnsupportedTokenizerError, match="Unigram"):
        pieces_of({"model": {"type": "Unigram", "vocab": []}}, tmp_path)
