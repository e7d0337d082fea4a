"""Reading tokenizer.json's nested parts, for the modules that look at them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from compact.errors import UnsupportedTokenizerError

_FOREIGN_OPTIONS = ("continuing_subword_prefix", "end_of_word_suffix", "dropout")


def steps(part: Any, children: str) -> list[Mapping[str, Any]]:
    """The steps of a normalizer or pre_tokenizer, with nested and empty sequences taken apart.

    Args:
        part: the object in tokenizer.json, or None.
        children: the key under which a `Sequence` lists its steps (`normalizers`, `pretokenizers`).

    Raises:
        UnsupportedTokenizerError: the part has not the shape that the tokenizers library writes.
    """
    if part is None:
        return []
    if not isinstance(part, Mapping):
        raise UnsupportedTokenizerError("tokenizer.json: a normalizer or pre_tokenizer is not an object")
    if part.get("type") != "Sequence":
        return [part]
    inner = part.get(children)
    if not isinstance(inner, list):
        raise UnsupportedTokenizerError(f"tokenizer.json: a Sequence has no list {children!r}")
    return [step for child in inner for step in steps(child, children)]


def bpe_model(tokenizer_json: Mapping[str, Any]) -> Mapping[str, Any]:
    """The `model` of tokenizer.json, if it is BPE without options that llama.cpp has no counterpart for.

    Raises:
        UnsupportedTokenizerError: it is another kind (Unigram, WordPiece), or has such an option.
    """
    model = tokenizer_json.get("model")
    if not isinstance(model, Mapping):
        raise UnsupportedTokenizerError("tokenizer.json: no model")
    kind = model.get("type")
    if kind != "BPE":
        raise UnsupportedTokenizerError(
            f"tokenizer.json: model type {kind!r} is not supported",
            "byte-level BPE and SentencePiece-style BPE tokenizers can be exported",
        )
    for option in _FOREIGN_OPTIONS:
        if model.get(option):
            raise UnsupportedTokenizerError(f"tokenizer.json: BPE with {option} = {model[option]!r} is not supported")
    return model


def short(part: Any) -> str:
    """JSON of a part, cut for a message."""
    text = json.dumps(part, ensure_ascii=False, default=str)
    return text if len(text) <= 200 else text[:197] + "..."
