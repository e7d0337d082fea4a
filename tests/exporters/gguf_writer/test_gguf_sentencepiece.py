"""A SentencePiece vocabulary in a GGUF: what is written, what is read back, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer

from compact.base.errors import CompactEdgeError, DamagedFileError, UnsupportedTokenizerError
from compact.checkpoints.gguf_file import read_gguf
from compact.sources.from_gguf_tokenizer import read_tokenizer
from exporters.gguf.parity import check_tokenizer
from exporters.gguf_writer.write import write_gguf
from exporters.llamacpp.engine import LlamaEngine
from exporters.tokenizer_probe_texts import probe_texts
from tests.checkpoints import TEXTS, write_checkpoint
from tests.sentencepiece_models import (
    BYTES,
    CONTROL,
    FILLER,
    MARK,
    SPECIALS,
    USER_DEFINED,
    has_prefix,
    tokenizer_files,
    tokenizer_json,
    trained_model,
)
from tests.vocabularies import Source, write_tokenizer, write_vocabulary

STRESS = [*TEXTS, *probe_texts([*SPECIALS, CONTROL, USER_DEFINED])]
NORMAL, UNKNOWN, CONTROL_TYPE, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def values_of(directory: Path, target: Path, rows: int | None = None) -> dict[str, Any]:
    if rows is not None:
        (directory / "config.json").write_text(json.dumps({"vocab_size": rows}))
    return dict(read_gguf(write_vocabulary(directory, target)).values)


@pytest.mark.parametrize("model", [True, False])
def test_tokens_scores_and_types(tmp_path: Path, model: bool) -> None:
    """By llama.cpp's converter: -1000 for what lies on top of tokenizer.model, -10000 for rows without a token."""
    document = tokenizer_json("gemma")
    vocab = document["model"]["vocab"]
    spaces = {"id": vocab[MARK * 2], "content": MARK * 2, "special": False, "normalized": False, "single_word": False,
              "lstrip": False, "rstrip": False}  # fmt: skip
    document["added_tokens"].append(spaces)
    files = tokenizer_files("gemma", model=model)
    directory = write_tokenizer(tmp_path / "m", document, files)
    values = values_of(directory, tmp_path / "m.gguf", rows=len(vocab) + 3)
    tokens, types = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    scores = values["tokenizer.ggml.scores"]
    expected = {
        "<unk>": UNKNOWN, "<s>": CONTROL_TYPE, CONTROL: CONTROL_TYPE, FILLER: CONTROL_TYPE, "<0x0A>": BYTE, "e": NORMAL,
        f"{MARK}de": NORMAL, "  ": USER, USER_DEFINED: USER,
        f"[PAD{len(vocab) + 1}]": UNUSED, f"[PAD{len(vocab) + 2}]": UNUSED,
    }  # fmt: skip
    assert {token: types[tokens.index(token)] for token in expected} == expected
    assert tokens[vocab[MARK * 2]] == "  "  # llama.cpp finds it in the text, where spaces are spaces
    assert all(tokens[i] == token for token, i in vocab.items() if token != MARK * 2)
    assert scores[-3:] == [-1000.0, -10000.0, -10000.0]
    sp = sentencepiece.SentencePieceProcessor()
    sp.LoadFromSerializedProto(trained_model(False))
    learned = sorted((i for i in range(sp.vocab_size()) if types[i] == NORMAL), key=sp.get_score, reverse=True)
    ours = [scores[i] for i in learned if len(sp.id_to_piece(i)) > 1]
    assert ours == sorted(ours, reverse=True)
    if model:
        assert [scores[i] for i in learned] == [sp.get_score(i) for i in learned]
    assert values["tokenizer.ggml.model"] == "llama"
    assert values["tokenizer.ggml.pre"] == "default"
    assert values["tokenizer.ggml.add_space_prefix"] is False
    assert (values["tokenizer.ggml.add_bos_token"], values["tokenizer.ggml.add_eos_token"]) == (True, False)
    assert [values[f"tokenizer.ggml.{role}_token_id"] for role in ("unknown", "bos", "eos")] == [0, 1, 2]
    assert "tokenizer.ggml.merges" not in values


def test_added_tokens_that_a_configuration_lists_get_their_score(tmp_path: Path) -> None:
    document = tokenizer_json("llama 2")
    files = tokenizer_files("llama 2")
    decoder = {str(entry["id"]): entry for entry in document["added_tokens"]}
    config = {**json.loads(files["tokenizer_config.json"]), "added_tokens_decoder": decoder, "add_prefix_space": True}
    files["tokenizer_config.json"] = json.dumps(config)
    values = values_of(write_tokenizer(tmp_path / "m", document, files), tmp_path / "m.gguf")
    assert values["tokenizer.ggml.scores"][:5] == [-1000.0] * 5
    assert values["tokenizer.ggml.token_type"][:5] == [CONTROL_TYPE] * 5
    assert values["tokenizer.ggml.add_space_prefix"] is True


@pytest.mark.parametrize("style", ["llama 2", "gemma"])
def test_a_gguf_comes_back_as_the_same_tokenizer(tmp_path: Path, style: str) -> None:
    source = Source(write_tokenizer(tmp_path / "m", tokenizer_json(style), tokenizer_files(style)))
    with source.engine(tmp_path) as engine:
        expected = {special: engine.tokenize(STRESS, parse_special=special) for special in (True, False)}
    read = read_tokenizer(read_gguf(tmp_path / "m.gguf").values, "m.gguf")
    back = Tokenizer.from_str(json.dumps(read.json))
    for special, ids in expected.items():
        back.encode_special_tokens = not special
        assert [list(e.ids) for e in back.encode_batch(STRESS, add_special_tokens=False)] == ids
    back.encode_special_tokens = False
    assert back.encode("Hello").ids == source.tokenizer.encode("Hello").ids
    assert back.decode(back.encode(TEXTS[0]).ids) == source.tokenizer.decode(source.tokenizer.encode(TEXTS[0]).ids)
    assert {tuple(pair) for pair in read.json["model"]["merges"]} == {
        tuple(pair) for pair in source.document["model"]["merges"]
    }
    assert read.model is not None
    sp = sentencepiece.SentencePieceProcessor()
    sp.LoadFromSerializedProto(read.model)
    # SentencePiece puts a space in front of the text only; the others in front of what follows a special token.
    for text, ids in zip(STRESS, expected[False], strict=True):
        assert sp.encode(text) == ids or (style == "llama 2" and USER_DEFINED in text)
    assert (sp.unk_id(), sp.bos_id(), sp.eos_id()) == (0, 1, 2)
    again = write_tokenizer(tmp_path / "again", read.json, {
        "tokenizer.model": read.model, "tokenizer_config.json": json.dumps(read.names)
    })  # fmt: skip
    first, second = values_of(source.directory, tmp_path / "a.gguf"), values_of(again, tmp_path / "b.gguf")
    assert {k: v for k, v in first.items() if "name" not in k} == {k: v for k, v in second.items() if "name" not in k}


def gguf_values(style: str, tmp_path: Path) -> dict[str, Any]:
    directory = write_tokenizer(tmp_path / "m", tokenizer_json(style), tokenizer_files(style))
    return values_of(directory, tmp_path / "m.gguf")


def test_what_llama_cpp_assumes_without_a_key(tmp_path: Path) -> None:
    values = gguf_values("llama 2", tmp_path)
    for key in ("pre", "bos_token_id", "eos_token_id", "unknown_token_id", "add_bos_token", "add_eos_token"):
        values.pop(f"tokenizer.ggml.{key}", None)
    read = read_tokenizer(values, "old.gguf")
    assert {role: read.ids[role] for role in ("unknown", "bos", "eos")} == {"unknown": 0, "bos": 1, "eos": 2}
    tokenizer = Tokenizer.from_str(json.dumps(read.json))
    assert tokenizer.encode("a").tokens == ["<s>", f"{MARK}a"]


def test_the_special_tokens_of_phi_3_swallow_white_space(tmp_path: Path) -> None:
    """llama.cpp knows the family by the model's name; so does the tokenizer that is made of the file."""
    document = tokenizer_json("llama 2")
    end = {**document["added_tokens"][0], "id": len(document["model"]["vocab"]) + 1, "content": "<|endoftext|>"}
    document["added_tokens"].append(end)  # llama.cpp refuses a file of this name without it
    directory = write_tokenizer(tmp_path / "Phi-3-mini", document, tokenizer_files("llama 2"))
    path = write_vocabulary(directory, tmp_path / "m.gguf")
    texts = [f"a {token}  b\n{token}\n c" for token in (CONTROL, "</s>", "<s>")]
    tokenizer = Tokenizer.from_str(json.dumps(read_tokenizer(read_gguf(path).values, "m").json))
    with LlamaEngine(path, vocab_only=True) as engine:
        assert engine.tokenize(texts, parse_special=True) == [
            tokenizer.encode(text, add_special_tokens=False).ids for text in texts
        ]


REFUSED: dict[str, tuple[dict[str, Any], type[CompactEdgeError], str]] = {
    "no scores": ({"scores": None}, DamagedFileError, "scores is missing"),
    "too few scores": ({"scores": [0.0]}, DamagedFileError, "scores is missing"),
    "a score that is no number": ({"scores": math.nan}, DamagedFileError, "not a finite number"),
    "an infinite score": ({"scores": -math.inf}, DamagedFileError, "not a finite number"),
    "a prefix that is text": ({"add_space_prefix": "yes"}, DamagedFileError, "add_space_prefix"),
    "a byte type on a word": ({"token_type": BYTE}, DamagedFileError, "byte token"),
    "an unknown type": ({"token_type": 9}, UnsupportedTokenizerError, "type 9"),
    "no token for a byte": ({"tokens": "x0x7F", "token_type": 1}, UnsupportedTokenizerError, "<0x7F>"),
    "a repeated token": ({"tokens": "<0x7E>"}, DamagedFileError, "twice"),
    "an id beyond the tokens": ({"bos_token_id": 1 << 20}, DamagedFileError, "bos_token_id"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_broken_vocabulary_is_refused(tmp_path: Path, case: str) -> None:
    values = gguf_values("llama 2", tmp_path)
    changes, error, word = REFUSED[case]
    at = values["tokenizer.ggml.tokens"].index("<0x7F>" if "tokens" in changes else f"{MARK}de")
    for key, value in changes.items():
        key = f"tokenizer.ggml.{key}"
        old = values.get(key)
        if value is None:
            del values[key]
        elif isinstance(old, list) and not isinstance(value, list):
            values[key] = [*old[:at], value, *old[at + 1 :]]
        else:
            values[key] = value
    with pytest.raises(error, match=word):
        read_tokenizer(values, "m.gguf")


@pytest.mark.parametrize("kind", ["t5", "bert", "rwkv", "plamo2"])
def test_other_kinds_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    values = gguf_values("llama 2", tmp_path) | {"tokenizer.ggml.model": kind}
    with pytest.raises(UnsupportedTokenizerError, match=kind):
        read_tokenizer(values, "m.gguf")


def test_merges_of_a_gemma4_vocabulary(tmp_path: Path) -> None:
    document = tokenizer_json("gemma")
    values = gguf_values("gemma", tmp_path) | {"tokenizer.ggml.model": "gemma4"}
    values["tokenizer.ggml.merges"] = [" ".join(pair) for pair in document["model"]["merges"]]
    read = read_tokenizer(values, "m.gguf")
    assert read.json["model"]["merges"] == [list(pair) for pair in document["model"]["merges"]]
    assert read.model is None
    back = Tokenizer.from_str(json.dumps(read.json))
    original = Tokenizer.from_str(json.dumps(document))
    assert [e.ids for e in back.encode_batch(STRESS)] == [e.ids for e in original.encode_batch(STRESS)]


@pytest.mark.parametrize("style", ["llama 2", "metaspace first", "gemma"])
def test_the_gate_passes_an_unpruned_export(tmp_path: Path, style: str) -> None:
    """With no pair to compare with, the runtime's own rule for the space in front explains what it changes."""
    checkpoint = write_checkpoint(tmp_path / "m", tokenizer=tokenizer_json(style), bos_token_id=1, eos_token_id=2)
    for name, content in tokenizer_files(style).items():
        (checkpoint / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    write_gguf(checkpoint, tmp_path / "m.gguf", "F32", vocab_only=True)
    check = check_tokenizer(checkpoint, tmp_path / "m.gguf", TEXTS, unpruned=None)
    assert check.passed is True
    assert (check.figures["runtime_own"] > 0) is (style == "metaspace first")


def test_a_wrong_score_fails_the_gate(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "m", tokenizer=tokenizer_json("llama 2"), bos_token_id=1, eos_token_id=2)
    for name, content in tokenizer_files("llama 2").items():
        (checkpoint / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    document = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    merges = document["model"]["merges"]
    with_model = write_gguf(checkpoint, tmp_path / "m.gguf", "F32", vocab_only=True)
    assert with_model.pre == "default"
    # The same tokens in another order of merges: the file's scores are another tokenizer's then.
    document["model"]["merges"] = merges[::-1]
    (checkpoint / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    assert check_tokenizer(checkpoint, tmp_path / "m.gguf", TEXTS, unpruned=None).passed is False
    with pytest.raises(DamagedFileError, match="ranks"):
        write_gguf(checkpoint, tmp_path / "other.gguf", "F32", vocab_only=True)


def test_more_pieces_than_rows(tmp_path: Path) -> None:
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(trained_model(has_prefix("llama 2")))
    document = tokenizer_json("llama 2")
    for n in range(3):
        model.pieces.add(piece=f"more{n}", score=-5000.0)
    files = {**tokenizer_files("llama 2"), "tokenizer.model": model.SerializeToString()}
    directory = write_tokenizer(tmp_path / "m", document, files)
    with pytest.raises(DamagedFileError, match="pieces, but the embedding has"):
        write_vocabulary(directory, tmp_path / "m.gguf")


def test_all_byte_tokens_are_bytes(tmp_path: Path) -> None:
    values = gguf_values("llama 2", tmp_path)
    types = dict(zip(values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"], strict=True))
    assert {token for token, kind in types.items() if kind == BYTE} == set(BYTES)
