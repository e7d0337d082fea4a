"""SentencePiece-style BPE (Llama 2, Mistral, Gemma): what tokenizer.json says, and what llama.cpp makes of it.

Such a tokenizer.json has `byte_fallback`: spaces become `▁`, a character without a token falls back to the tokens
`<0x00>` to `<0xFF>` of its bytes. llama.cpp (`tokenizer.ggml.model` = `llama`) holds no merges: it joins the two
neighbours whose concatenation is the token with the best score, leftmost first. The two agree where the merges are
those of a SentencePiece model: every split of a token into two tokens is a merge, and the merges stand in the order of
the scores of what they make. `check_complete` and `derived_scores` hold a tokenizer to that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from compact.errors import UnsupportedTokenizerError
from compact.tokenizer_json import bpe_model, short, steps

SPACE_MARK = "\u2581"
PRE_NAME = "default"  # what llama.cpp's converter writes as `tokenizer.ggml.pre` for this kind
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
_BYTE_SET = frozenset(BYTE_TOKENS)
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK}
_PREPEND = {"type": "Prepend", "prepend": SPACE_MARK}
# Transformers 5 makes this of a tokenizer.model: Metaspace would leave out the mark before a text that has one already.
_DOUBLE = {"type": "Replace", "pattern": {"Regex": rf"\A{SPACE_MARK}"}, "content": SPACE_MARK * 2}
_HINT = "llama.cpp's tokenizer for this kind has scores instead of merges, and would give other ids"
# float32 holds every whole number up to here.
_MAX_MERGES = 1 << 24


def is_byte_token(token: str) -> bool:
    """True for `<0x00>` to `<0xFF>`, as llama.cpp spells them."""
    return token in _BYTE_SET


def is_sentencepiece_bpe(tokenizer_json: Mapping[str, Any]) -> bool:
    """True for a BPE tokenizer.json with `byte_fallback`."""
    model = tokenizer_json.get("model")
    return isinstance(model, Mapping) and model.get("type") == "BPE" and bool(model.get("byte_fallback"))


def space_prefix(tokenizer_json: Mapping[str, Any]) -> bool:
    """Whether a text gets a space in front (Llama 2, Mistral) or not (Gemma).

    Args:
        tokenizer_json: a file for which `is_sentencepiece_bpe` holds.

    Raises:
        UnsupportedTokenizerError: a setting that llama.cpp's tokenizer of this kind has no counterpart for.
    """
    model = bpe_model(tokenizer_json)
    if model.get("ignore_merges"):
        raise UnsupportedTokenizerError("tokenizer.json: SentencePiece-style BPE with ignore_merges is not supported")
    vocab = model.get("vocab")
    missing = [token for token in BYTE_TOKENS if not isinstance(vocab, Mapping) or token not in vocab]
    if missing:
        raise UnsupportedTokenizerError(
            f"tokenizer.json: SentencePiece-style BPE without the byte token {missing[0]} ({len(missing)} of 256 lack)",
            "llama.cpp needs all of <0x00> to <0xFF>",
        )
    normalizers = [dict(step) for step in steps(tokenizer_json.get("normalizer"), "normalizers")]
    splits = [_split_effect(step) for step in steps(tokenizer_json.get("pre_tokenizer"), "pretokenizers")]
    splits = [effect for effect in splits if effect != "none"]
    if (normalizers in ([], [_REPLACE]) and splits == ["replace"]) or (normalizers == [_REPLACE] and not splits):
        return False
    if normalizers in ([_PREPEND, _REPLACE], [_REPLACE, _PREPEND]) and not splits:
        return True
    if normalizers in ([], [_REPLACE], [_REPLACE, _DOUBLE]) and splits == ["prefix"]:
        return True
    raise UnsupportedTokenizerError(
        f"tokenizer.json: SentencePiece-style BPE with normalizer {short(normalizers)} and pre_tokenizer "
        f"{short(tokenizer_json.get('pre_tokenizer'))} has no counterpart in llama.cpp",
        "known: Replace of spaces by U+2581, with Prepend or without; Metaspace that does not split",
    )


def _split_effect(step: Mapping[str, Any]) -> str:
    """What a pre-tokenizer does here: `none`, `replace` (spaces by marks), `prefix` (a mark in front too), `other`."""
    if step.get("type") == "Split" and step.get("pattern") == {"String": " "} and not step.get("invert"):
        return "none"  # the normalizer has left no space to split at
    if step.get("type") == "Metaspace" and step.get("replacement") == SPACE_MARK and step.get("split") is False:
        return {"never": "replace", "first": "prefix", "always": "prefix"}.get(str(step.get("prepend_scheme")), "other")
    return "other"


def tokenizer_parts(prefix: bool) -> dict[str, Any]:
    """`normalizer`, `pre_tokenizer` and `decoder` of a tokenizer.json that reads text as llama.cpp does.

    Args:
        prefix: a space goes in front of a text and of what follows a special token.
    """
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": {"type": "Sequence", "normalizers": [_PREPEND, _REPLACE]} if prefix else _REPLACE,
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
    }


def derived_scores(merges: Sequence[tuple[str, str]], where: str) -> dict[str, float]:
    """Scores that make llama.cpp join what the merges join.

    Args:
        merges: pairs of tokens, first rank first.
        where: the file's path, for messages.

    Returns:
        Token -> minus the rank of the first merge that makes it: whole numbers above -2^24, which float32 holds
        exactly. Tokens whose merges stand between each other's get one score: the SentencePiece model had one for
        them (Gemma's runs of white space), and Hugging Face's converter then sorts by the parts' lengths.

    Raises:
        UnsupportedTokenizerError: merges of several tokens stand between each other in another order; no scores say
            what they say. Or there are too many merges.
    """
    if len(merges) > _MAX_MERGES:
        raise UnsupportedTokenizerError(f"{where}: {len(merges)} merges, more than float32 scores can rank")
    last = {left + right: rank for rank, (left, right) in enumerate(merges)}
    scores: dict[str, float] = {}
    start, end = 0, -1
    for rank, (left, right) in enumerate(merges):
        if rank > end:
            _check_tie(merges[start:rank], where)
            start = rank
        end = max(end, last[left + right])
        scores.setdefault(left + right, float(-start))
    _check_tie(merges[start:], where)
    return scores


def _check_tie(merges: Sequence[tuple[str, str]], where: str) -> None:
    """Merges that stand between each other: of one token, or sorted as those of equal scores are."""
    token = next((left + right for left, right in merges), "")
    lengths = [(len(left), len(right)) for left, right in merges]
    if lengths != sorted(lengths, reverse=True) and any(left + right != token for left, right in merges):
        raise UnsupportedTokenizerError(
            f"{where}: the merges that make {token!r} are no SentencePiece model's: others stand between them", _HINT
        )


def check_complete(
    vocab: Collection[str], merges: Sequence[tuple[str, str]], apart: Collection[str], where: str
) -> None:
    """Hold the merges to what a SentencePiece model gives: every split of a token into two tokens is one.

    Args:
        vocab: the tokens of the BPE model.
        merges: pairs of tokens.
        apart: tokens that stand for themselves (added and byte tokens); they need no merges.
        where: the file's path, for messages.

    Raises:
        UnsupportedTokenizerError: llama.cpp would join two tokens that tokenizer.json does not.
    """
    count = Counter(left + right for left, right in merges)
    for token in vocab:
        if len(token) < 2 or token in apart:
            continue
        cuts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        splits = [cut for cut in cuts if cut[0] in vocab and cut[1] in vocab]
        # A converter may leave out splits into tokens that stand for themselves.
        needed = sum(left not in apart and right not in apart for left, right in splits)
        if not needed <= count[token] <= len(splits):
            raise UnsupportedTokenizerError(
                f"{where}: {token!r} has {count[token]} merges, a SentencePiece model gives it {needed}", _HINT
            )


def merges_from_scores(scores: Mapping[str, float], vocab: Collection[str]) -> list[tuple[str, str]]:
    """The merges that join what llama.cpp joins by scores: every split of a token into two, best score first.

    Args:
        scores: score of every token that merging may make.
        vocab: the tokens that may be parts.

    Of equal scores the longer left part comes first, as Hugging Face's converter has it.
    """
    found: list[tuple[float, int, int, str, str]] = []
    for token, score in scores.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                found.append((-score, -cut, cut - len(token), left, right))
    found.sort(key=lambda row: row[:3])
    return [(left, right) for _, _, _, left, right in found]
