"""Helpers to read the nested parts of tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from compact.base.errors import UnsupportedTokenizerError

_FOREIGN_OPTIONS = ("continuing_subword_prefix", "end_of_word_suffix")


def steps(part: Any, children: str) -> list[Mapping[str, Any]]:
    """Return the steps of a normalizer or pre_tokenizer as a flat list.

    Args:
        part: the object in tokenizer.json, or None.
        children: the key under which a `Sequence` lists its steps (`normalizers`, `pretokenizers`).

    Raises:
        UnsupportedTokenizerError: the part does not have the structure that the tokenizers library writes.
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
    """Return the `model` of tokenizer.json. It must be BPE without options that llama.cpp does not support.

    Raises:
        UnsupportedTokenizerError: the model has another type (Unigram, WordPiece), or an unsupported option.
    """
    model = tokenizer_json.get("model")
    if not isinstance(model, Mapping):
        raise UnsupportedTokenizerError("tokenizer.json: model is missing or not an object")
    kind = model.get("type")
    if kind != "BPE":
        raise UnsupportedTokenizerError(
            f"tokenizer.json: model type {kind!r} is not supported",
            "byte-level BPE and SentencePiece-style BPE tokenizers can be exported",
        )
    if model.get("dropout"):
        raise UnsupportedTokenizerError(
            f"tokenizer.json: BPE with dropout = {model['dropout']:.3g} splits the same text differently each time",
            "dropout is for training: set model.dropout to null in the tokenizer.json of the model",
        )
    for option in _FOREIGN_OPTIONS:
        if model.get(option):
            raise UnsupportedTokenizerError(f"tokenizer.json: BPE with {option} = {model[option]!r} is not supported")
    return model


def short(part: Any) -> str:
    """JSON of a part, truncated to 200 characters for messages."""
    text = json.dumps(part, ensure_ascii=False, default=str)
    return text if len(text) <= 200 else text[:197] + "..."
