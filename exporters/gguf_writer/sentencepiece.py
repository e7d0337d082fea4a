"""The vocabulary of a SentencePiece-style BPE tokenizer in a GGUF: tokens, scores and types, but no merges.

If tokenizer.model exists, its pieces and scores are written as llama.cpp's converter writes them. The added tokens of
tokenizer.json then replace entries. Without tokenizer.model, the converter gives every token the same score, so
llama.cpp merges in an arbitrary order. This module derives the scores from the merges instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from compact.base.errors import DamagedFileError
from compact.base.files import read_json_object
from compact.checkpoints.names import ADDED_TOKENS, TOKENIZER, TOKENIZER_CONFIG, TOKENIZER_MODEL
from compact.vocabulary.sentencepiece_bpe import BYTE_TOKENS, SPACE_MARK, check_complete, derived_scores, is_byte_token
from compact.vocabulary.sentencepiece_model import PieceType, SentencePieceModel, read_model

# Scores that llama.cpp's converter gives to added tokens and to ids without a token.
ADDED_SCORE, PADDING_SCORE = -1000.0, -10000.0

# Added tokens that llama.cpp's converter makes control tokens even if tokenizer.json does not mark them special.
_LOOKS_SPECIAL = frozenset({"<pad>", "<mask>", "<2mass>", "[@BOS@]"})
_LOOKS_SPECIAL_AFFIXES = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))

# llama.cpp's chat parser must see these control tokens, so its converter makes them user-defined (Gemma 4).
VISIBLE = frozenset(
    {"<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>'}
)


def is_control(entry: Mapping[str, Any], text: str) -> bool:
    """Return whether an added token becomes a control token: by its flag, or by its text as in the converter."""
    looks_special = text in _LOOKS_SPECIAL or any(
        text.startswith(first) and text.endswith(last) for first, last in _LOOKS_SPECIAL_AFFIXES
    )
    return bool(entry.get("special")) or looks_special


@dataclass(frozen=True)
class ScoredTokens:
    """`tokenizer.ggml.tokens`, `.scores` and `.token_type`, with one entry per row of the embedding."""

    tokens: list[str]
    scores: list[float]
    types: list[int]


def scored_tokens(
    checkpoint: Path, tokenizer_json: Mapping[str, Any], texts: Mapping[int, str], vocab_size: int
) -> ScoredTokens:
    """Build the three lists for a checkpoint's SentencePiece-style BPE tokenizer.

    Args:
        checkpoint: directory with tokenizer.json; tokenizer.model, tokenizer_config.json and added_tokens.json are
            optional.
        tokenizer_json: the parsed tokenizer.json.
        texts: id -> token of tokenizer.json. Ids are below `vocab_size`.
        vocab_size: rows of the embedding. Ids without a token become `[PADn]` with type UNUSED.

    Raises:
        UnsupportedTokenizerError: scores cannot express the merges.
        DamagedFileError: tokenizer.model contradicts tokenizer.json, or two ids have the same text (llama.cpp aborts).
    """
    where = str(checkpoint / TOKENIZER)
    added = {entry["id"]: entry for entry in tokenizer_json.get("added_tokens") or ()}
    vocab = tokenizer_json["model"]["vocab"]
    merges = [_pair(merge) for merge in tokenizer_json["model"]["merges"]]
    apart = {entry["content"] for entry in added.values()}.union(BYTE_TOKENS)
    check_complete(vocab, merges, apart, where)
    model_path = checkpoint / TOKENIZER_MODEL
    result = ScoredTokens(
        [f"[PAD{i}]" for i in range(vocab_size)], [PADDING_SCORE] * vocab_size, [int(PieceType.UNUSED)] * vocab_size
    )
    if model_path.is_file():
        model = read_model(model_path)
        _check_order(model, merges, str(model_path))
        _put_model(result, model, texts, added, str(model_path))
        listed = _listed_ids(checkpoint)
    else:
        _put_vocab(result, vocab, derived_scores(merges, where), tokenizer_json["model"].get("unk_token"))
        listed = set()
    for token_id, entry in added.items():
        _put_added(result, token_id, entry, listed=token_id in listed)
    _refuse_twice(result.tokens, where)
    return result


def merged_tokens(
    tokenizer_json: Mapping[str, Any], texts: Mapping[int, str], vocab_size: int, where: str
) -> ScoredTokens:
    """Build the three lists for llama.cpp's tokenizer `gemma4`, which uses merges and ignores scores.

    Args:
        tokenizer_json: the parsed tokenizer.json.
        texts: id -> token of tokenizer.json. Ids are below `vocab_size`.
        vocab_size: rows of the embedding. Ids without a token become `[PADn]` with type UNUSED.
        where: path of tokenizer.json, for messages.

    Raises:
        DamagedFileError: two ids have the same text (llama.cpp aborts).
    """
    kinds = gguf.TokenType
    tokens = [texts.get(i, f"[PAD{i}]") for i in range(vocab_size)]
    result = ScoredTokens(tokens, [ADDED_SCORE] * vocab_size, [int(kinds.UNUSED)] * vocab_size)
    for token_id, text in texts.items():
        result.types[token_id] = int(kinds.BYTE if is_byte_token(text) else kinds.NORMAL)
    for entry in tokenizer_json.get("added_tokens") or ():
        visible = entry["content"] in VISIBLE or not is_control(entry, entry["content"])
        result.types[entry["id"]] = int(kinds.USER_DEFINED if visible else kinds.CONTROL)
        if visible:
            result.tokens[entry["id"]] = entry["content"].replace(SPACE_MARK, " ")
    _refuse_twice(result.tokens, where)
    return result


def _refuse_twice(tokens: Sequence[str], where: str) -> None:
    if len(set(tokens)) != len(tokens):
        twice = Counter(tokens).most_common(1)[0][0]
        raise DamagedFileError(
            f"{where}: token {twice[:60]!r} has two ids", "llama.cpp needs a different text for each id"
        )


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _listed_ids(checkpoint: Path) -> set[int]:
    """Return the ids in `added_tokens_decoder` or added_tokens.json. They get the score of added tokens."""
    listed: set[int] = set()
    config_path, added_path = checkpoint / TOKENIZER_CONFIG, checkpoint / ADDED_TOKENS
    if config_path.is_file():
        decoder = read_json_object(config_path).get("added_tokens_decoder")
        if isinstance(decoder, dict):
            listed.update(int(i) for i in decoder if i.isdecimal())
    if added_path.is_file():
        listed.update(i for i in read_json_object(added_path).values() if isinstance(i, int))
    return listed


def _check_order(model: SentencePieceModel, merges: Sequence[tuple[str, str]], where: str) -> None:
    """Raise DamagedFileError if the scores and the merges rank two tokens in different orders."""
    scores = dict(zip(model.pieces, model.scores, strict=True))
    last = float("inf")
    seen: set[str] = set()
    for left, right in merges:
        score = scores.get(left + right)
        # The first merge that makes a token gives its rank. More merges of runs (`▁▁▁`) may be anywhere.
        if score is None or left + right in seen:
            continue
        seen.add(left + right)
        if score > last:
            raise DamagedFileError(
                f"{where}: {left + right!r} ranks above a token that tokenizer.json merges earlier",
                f"the files are of different tokenizers; remove {TOKENIZER_MODEL} if tokenizer.json is right",
            )
        last = score


def _put_model(
    result: ScoredTokens,
    model: SentencePieceModel,
    texts: Mapping[int, str],
    added: Mapping[int, Mapping[str, Any]],
    where: str,
) -> None:
    for i, (piece, score, kind) in enumerate(zip(model.pieces, model.scores, model.types, strict=True)):
        if i >= len(result.tokens):
            raise DamagedFileError(
                f"{where}: {len(model.pieces)} pieces, but the embedding has {len(result.tokens)} rows",
                "use the tokenizer that belongs to these weights",
            )
        if texts.get(i, piece) != piece and i not in added:
            raise DamagedFileError(
                f"{where}: id {i} is {piece[:40]!r}, but {texts[i][:40]!r} in tokenizer.json",
                f"the files are of different tokenizers; remove {TOKENIZER_MODEL} if tokenizer.json is right",
            )
        # The converter treats user-defined pieces as normal ones. `_put_added` sets the types of added tokens.
        plain = PieceType.NORMAL if kind == PieceType.USER_DEFINED else kind
        result.tokens[i], result.scores[i], result.types[i] = piece, score, int(plain)
    beyond = {i: text for i, text in texts.items() if i >= len(model.pieces) and i not in added}
    if beyond:
        token_id = min(beyond)
        raise DamagedFileError(
            f"{where}: has {len(model.pieces)} pieces, but tokenizer.json has {beyond[token_id][:40]!r} at {token_id}",
            f"the files are of different tokenizers; remove {TOKENIZER_MODEL} if tokenizer.json is right",
        )


def _put_vocab(result: ScoredTokens, vocab: Mapping[str, int], scores: Mapping[str, float], unknown: Any) -> None:
    lowest = min(scores.values(), default=0.0) - 1.0
    for token, i in vocab.items():
        kind = PieceType.BYTE if is_byte_token(token) else PieceType.NORMAL
        result.tokens[i], result.scores[i], result.types[i] = token, scores.get(token, lowest), int(kind)
    if unknown in vocab:
        result.types[vocab[unknown]] = int(PieceType.UNKNOWN)


def _put_added(result: ScoredTokens, token_id: int, entry: Mapping[str, Any], *, listed: bool) -> None:
    """Replace an entry by an added token."""
    text: str = entry["content"]
    same = result.tokens[token_id] == text
    if listed or not same or result.types[token_id] == PieceType.UNUSED:
        result.scores[token_id] = ADDED_SCORE
    elif result.types[token_id] != PieceType.NORMAL:
        return
    if is_control(entry, text):
        result.types[token_id] = int(gguf.TokenType.CONTROL)
    else:
        # llama.cpp searches for added tokens in the raw text, before spaces become marks.
        text = text.replace(SPACE_MARK, " ")
        result.types[token_id] = int(gguf.TokenType.USER_DEFINED)
    result.tokens[token_id] = text
