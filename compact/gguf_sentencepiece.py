"""A SentencePiece vocabulary of a GGUF (`tokenizer.ggml.model` = `llama`) as tokenizer.json and tokenizer.model.

Such a file has a score for each token and no merges; every split of a token into two tokens is a merge, ranked by the
score of the token. `gemma4` has the same vocabulary and its merges as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gguf

from compact.errors import DamagedFileError, UnsupportedTokenizerError
from compact.sentencepiece_bpe import BYTE_TOKENS, is_byte_token, merges_from_scores
from compact.sentencepiece_model import built_model

_TYPE = gguf.TokenType
# llama.cpp's ids where the file names none.
_DEFAULT_IDS = {"llama": {"unknown": 0, "bos": 1, "eos": 2}, "gemma4": {}}
KINDS = tuple(_DEFAULT_IDS)
# llama.cpp looks for these in `general.name`: the special tokens of Phi-3 swallow the white space after them.
_STRIPPING_MODELS = ("phi-3", "phi3")
_NOT_STRIPPING = frozenset({"<unk>", "<s>", "<|endoftext|>"})


@dataclass(frozen=True)
class ScoredVocabulary:
    """What a GGUF says about a SentencePiece vocabulary, checked.

    Attributes:
        kind: `llama` or `gemma4`.
        tokens, types: text and `gguf.TokenType` of every id.
        scores: score of every id.
        prefix: llama.cpp puts a space in front of a text.
    """

    kind: str
    tokens: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float]
    prefix: bool


def default_ids(kind: str, n_tokens: int) -> dict[str, int]:
    """Role -> id that llama.cpp assumes where the file has no key."""
    return {role: i for role, i in _DEFAULT_IDS[kind].items() if i < n_tokens}


def read_scored(
    values: Mapping[str, Any], kind: str, tokens: Sequence[str], types: Sequence[int], where: str
) -> ScoredVocabulary:
    """Check scores, types and byte tokens.

    Args:
        values: the GGUF's key-values.
        kind: `tokenizer.ggml.model`.
        tokens: `tokenizer.ggml.tokens`.
        types: `tokenizer.ggml.token_type`, as many.
        where: the file's path, for messages.

    Raises:
        DamagedFileError: not as many scores as tokens, a score that is no number, or types that contradict the tokens.
        UnsupportedTokenizerError: a byte has no token.
    """
    scores = values.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise DamagedFileError(f"{where}: tokenizer.ggml.scores is missing, or has not a score for each token")
    if not all(isinstance(score, (int, float)) and math.isfinite(score) for score in scores):
        raise DamagedFileError(f"{where}: a score in tokenizer.ggml.scores is no number")
    prefix = values.get("tokenizer.ggml.add_space_prefix", kind == "llama")
    if not isinstance(prefix, bool):
        raise DamagedFileError(f"{where}: tokenizer.ggml.add_space_prefix is neither true nor false")
    byte_tokens = {token for token, type_ in zip(tokens, types, strict=True) if type_ == _TYPE.BYTE}
    if odd := sorted(token for token in byte_tokens if not is_byte_token(token)):
        raise DamagedFileError(f"{where}: {odd[0][:40]!r} has the type of a byte token")
    missing = set(BYTE_TOKENS).difference(tokens)
    if missing:
        raise UnsupportedTokenizerError(
            f"{where}: no token for the byte {min(missing)}", "supported: vocabularies with all of <0x00> to <0xFF>"
        )
    return ScoredVocabulary(kind, tokens, types, [float(score) for score in scores], prefix)


def added_tokens(vocabulary: ScoredVocabulary, name: Any) -> list[dict[str, Any]]:
    """`added_tokens` of tokenizer.json: what llama.cpp looks for in a text before it tokenizes the rest.

    Args:
        vocabulary: the checked vocabulary.
        name: `general.name`, by which llama.cpp knows the one family whose special tokens swallow white space.
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
    """The merges that join plain tokens as llama.cpp does by their scores."""
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
    """tokenizer.model with the same pieces and scores; None where SentencePiece cannot hold them."""
    roles = {"unknown": "unk", "bos": "bos", "eos": "eos", "padding": "pad"}
    named = {short: ids[role] for role, short in roles.items() if role in ids}
    return built_model(vocabulary.tokens, vocabulary.scores, vocabulary.types, named, vocabulary.prefix)
