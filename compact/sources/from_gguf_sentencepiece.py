"""Make tokenizer.json and tokenizer.model from a SentencePiece vocabulary in a GGUF (`tokenizer.ggml.model` = `llama`).

The GGUF has a score for each token and no merges. Every split of a token into two tokens is a merge, ranked by the
score of the token. A GGUF with the tokenizer model `gemma4` has such a vocabulary, and merges too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gguf

from compact.base.errors import DamagedFileError, UnsupportedTokenizerError
from compact.vocabulary.sentencepiece_bpe import BYTE_TOKENS, is_byte_token, merges_from_scores
from compact.vocabulary.sentencepiece_model import built_model

_TYPE = gguf.TokenType
# The ids that llama.cpp assumes if the file names none.
_DEFAULT_IDS = {"llama": {"unknown": 0, "bos": 1, "eos": 2}, "gemma4": {}}
KINDS = tuple(_DEFAULT_IDS)
# llama.cpp looks for these in `general.name`, because the special tokens of Phi-3 remove the white space after them.
_STRIPPING_MODELS = ("phi-3", "phi3")
_NOT_STRIPPING = frozenset({"<unk>", "<s>", "<|endoftext|>"})


@dataclass(frozen=True)
class ScoredVocabulary:
    """A checked SentencePiece vocabulary of a GGUF.

    Attributes:
        kind: `llama` or `gemma4`.
        tokens: text of every id.
        types: `gguf.TokenType` of every id.
        scores: score of every id.
        prefix: whether llama.cpp adds a space before a text.
    """

    kind: str
    tokens: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float]
    prefix: bool


def default_ids(kind: str, n_tokens: int) -> dict[str, int]:
    """Role -> the id that llama.cpp assumes if the file has no key for it."""
    return {role: i for role, i in _DEFAULT_IDS[kind].items() if i < n_tokens}


def read_scored(
    values: Mapping[str, Any], kind: str, tokens: Sequence[str], types: Sequence[int], where: str
) -> ScoredVocabulary:
    """Check scores, types and byte tokens, and return the vocabulary.

    Args:
        values: the GGUF's key-values.
        kind: `tokenizer.ggml.model`.
        tokens: `tokenizer.ggml.tokens`.
        types: `tokenizer.ggml.token_type`, one per token.
        where: the file's path, for messages.

    Raises:
        DamagedFileError: the numbers of scores and tokens differ, a score is not a finite number, or the types
            contradict the tokens.
        UnsupportedTokenizerError: a byte has no token.
    """
    scores = values.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise DamagedFileError(f"{where}: tokenizer.ggml.scores is missing or does not have one score per token")
    if not all(isinstance(score, (int, float)) and math.isfinite(score) for score in scores):
        raise DamagedFileError(f"{where}: a score in tokenizer.ggml.scores is not a finite number")
    prefix = values.get("tokenizer.ggml.add_space_prefix", kind == "llama")
    if not isinstance(prefix, bool):
        raise DamagedFileError(f"{where}: tokenizer.ggml.add_space_prefix is not a boolean")
    byte_tokens = {token for token, type_ in zip(tokens, types, strict=True) if type_ == _TYPE.BYTE}
    if odd := sorted(token for token in byte_tokens if not is_byte_token(token)):
        raise DamagedFileError(f"{where}: {odd[0][:40]!r} has the type of a byte token, but is not one")
    missing = set(BYTE_TOKENS).difference(tokens)
    if missing:
        raise UnsupportedTokenizerError(
            f"{where}: the byte token {min(missing)} is missing", "supported: vocabularies with all of <0x00> to <0xFF>"
        )
    return ScoredVocabulary(kind, tokens, types, [float(score) for score in scores], prefix)


def added_tokens(vocabulary: ScoredVocabulary, name: Any) -> list[dict[str, Any]]:
    """Return `added_tokens` of tokenizer.json: the tokens that llama.cpp searches for before it tokenizes the rest.

    Args:
        vocabulary: the checked vocabulary.
        name: `general.name`. llama.cpp uses it to recognise Phi-3, whose special tokens remove the white space after
            them.
    """
    stripping = isinstance(name, str) and any(part in name.lower() for part in _STRIPPING_MODELS)
    return [
        {
            "id": i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": stripping and token not in _NOT_STRIPPING,
            "normalized": False,
            "special": vocabulary.types[i] != _TYPE.USER_DEFINED,
        }
        for i, token in enumerate(vocabulary.tokens)
        if vocabulary.types[i] in (_TYPE.CONTROL, _TYPE.UNKNOWN, _TYPE.USER_DEFINED)
    ]


def scored_merges(vocabulary: ScoredVocabulary) -> list[list[str]]:
    """Return the merges that join plain tokens in the same way as llama.cpp does by their scores."""
    plain = {
        token
        for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
        if kind in (_TYPE.NORMAL, _TYPE.USER_DEFINED)
    }
    scores = {
        token: vocabulary.scores[i]
        for i, token in enumerate(vocabulary.tokens)
        if vocabulary.types[i] == _TYPE.NORMAL and len(token) > 1
    }
    return [[left, right] for left, right in merges_from_scores(scores, plain)]


def sentencepiece_file(vocabulary: ScoredVocabulary, ids: Mapping[str, int]) -> bytes | None:
    """Return tokenizer.model with the same pieces and scores, or None if SentencePiece cannot express them."""
    roles = {"unknown": "unk", "bos": "bos", "eos": "eos", "padding": "pad"}
    named = {short: ids[role] for role, short in roles.items() if role in ids}
    return built_model(vocabulary.tokens, vocabulary.scores, vocabulary.types, named, vocabulary.prefix)
