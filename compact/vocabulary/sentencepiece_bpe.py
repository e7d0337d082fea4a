"""SentencePiece-style BPE (Llama 2, Mistral, Gemma), in tokenizer.json and in llama.cpp.

A tokenizer.json of this kind has `byte_fallback`. Spaces become `▁`, and a character without a token is encoded with
the tokens `<0x00>` to `<0xFF>` of its bytes.

llama.cpp (`tokenizer.ggml.model` = `llama`) has scores instead of merges. It joins the two neighbours whose
concatenation is the token with the best score, leftmost first.

The two give the same ids if the merges come from a SentencePiece model: every split of a token into two tokens is a
merge, and merges are sorted by the scores of the tokens that they make. `check_complete` and `derived_scores` check
this.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from compact.base.errors import UnsupportedTokenizerError
from compact.vocabulary.tokenizer_json import bpe_model, short, steps

SPACE_MARK = "\u2581"
PRE_NAME = "default"  # `tokenizer.ggml.pre` as llama.cpp's converter writes it for this kind
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
_BYTE_SET = frozenset(BYTE_TOKENS)
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK}
_PREPEND = {"type": "Prepend", "prepend": SPACE_MARK}
# Transformers 5 writes this when it converts a tokenizer.model. Metaspace adds no mark to a text that begins with one,
# so the normalizer doubles the mark.
_DOUBLE = {"type": "Replace", "pattern": {"Regex": rf"\A{SPACE_MARK}"}, "content": SPACE_MARK * 2}
_HINT = "llama.cpp's tokenizer for this kind has scores instead of merges, and would give different ids"
# float32 represents every integer up to 2^24 exactly.
_MAX_MERGES = 1 << 24


def is_byte_token(token: str) -> bool:
    """Return whether the token is one of `<0x00>` to `<0xFF>`, as llama.cpp spells them."""
    return token in _BYTE_SET


def is_sentencepiece_bpe(tokenizer_json: Mapping[str, Any]) -> bool:
    """Return whether this is a BPE tokenizer.json with `byte_fallback`."""
    model = tokenizer_json.get("model")
    return isinstance(model, Mapping) and model.get("type") == "BPE" and bool(model.get("byte_fallback"))


def space_prefix(tokenizer_json: Mapping[str, Any]) -> bool:
    """Return whether the tokenizer adds a space before a text (Llama 2, Mistral) or not (Gemma).

    Args:
        tokenizer_json: a tokenizer.json for which `is_sentencepiece_bpe` is true.

    Raises:
        UnsupportedTokenizerError: llama.cpp's tokenizer of this kind has no equivalent of a setting.
    """
    model = bpe_model(tokenizer_json)
    if model.get("ignore_merges"):
        raise UnsupportedTokenizerError(
            "tokenizer.json: SentencePiece-style BPE with ignore_merges is not supported",
            "docs/tokenizers.md lists the supported tokenizers",
        )
    vocab = model.get("vocab")
    missing = [token for token in BYTE_TOKENS if not isinstance(vocab, Mapping) or token not in vocab]
    if missing:
        raise UnsupportedTokenizerError(
            f"tokenizer.json: SentencePiece-style BPE without byte token {missing[0]} ({len(missing)} of 256 missing)",
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
        f"{short(tokenizer_json.get('pre_tokenizer'))} has no equivalent in llama.cpp",
        "supported: Replace of spaces by U+2581, with or without Prepend; Metaspace that does not split",
    )


def _split_effect(step: Mapping[str, Any]) -> str:
    """Classify a pre-tokenizer: `none`, `replace` (spaces become marks), `prefix` (also adds a mark), or `other`."""
    if step.get("type") == "Split" and step.get("pattern") == {"String": " "} and not step.get("invert"):
        return "none"  # the normalizer has already replaced all spaces
    if step.get("type") == "Metaspace" and step.get("replacement") == SPACE_MARK and step.get("split") is False:
        return {"never": "replace", "first": "prefix", "always": "prefix"}.get(str(step.get("prepend_scheme")), "other")
    return "other"


def tokenizer_parts(prefix: bool) -> dict[str, Any]:
    """Return `normalizer`, `pre_tokenizer` and `decoder` of a tokenizer.json that reads text as llama.cpp does.

    Args:
        prefix: add a space before a text, and before the text after a special token.
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
    """Return scores with which llama.cpp joins the same tokens as the merges do.

    Tokens whose merges are interleaved get the same score. The SentencePiece model had one score for them (Gemma's
    runs of white space), and Hugging Face's converter sorts merges of equal score by the lengths of their parts.

    Args:
        merges: pairs of tokens, in order of rank.
        where: the file's path, for messages.

    Returns:
        Token -> score: minus the rank of the first merge that makes it, or that makes a token with the same score.
        These are integers above -2^24, which float32 represents exactly.

    Raises:
        UnsupportedTokenizerError: there are too many merges, or merges are interleaved in an order that no scores can
            express.
    """
    if len(merges) > _MAX_MERGES:
        raise UnsupportedTokenizerError(f"{where}: {len(merges)} merges are more than float32 scores can rank")
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
    """Check a run of interleaved merges: they make one token, or are sorted as merges of equal score are."""
    token = next((left + right for left, right in merges), "")
    lengths = [(len(left), len(right)) for left, right in merges]
    if lengths != sorted(lengths, reverse=True) and any(left + right != token for left, right in merges):
        raise UnsupportedTokenizerError(
            f"{where}: other merges come between the merges that make {token!r}, unlike in a SentencePiece model", _HINT
        )


def check_complete(
    vocab: Collection[str], merges: Sequence[tuple[str, str]], apart: Collection[str], where: str
) -> None:
    """Check that every split of a token into two tokens is a merge, as in a SentencePiece model.

    Args:
        vocab: the tokens of the BPE model.
        merges: pairs of tokens.
        apart: tokens that need no merges (added and byte tokens).
        where: the file's path, for messages.

    Raises:
        UnsupportedTokenizerError: a token has too few or too many merges. llama.cpp would join other tokens than
            tokenizer.json.
    """
    count = Counter(left + right for left, right in merges)
    for token in vocab:
        if len(token) < 2 or token in apart:
            continue
        cuts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        splits = [cut for cut in cuts if cut[0] in vocab and cut[1] in vocab]
        # A converter may leave out splits that contain added or byte tokens.
        needed = sum(left not in apart and right not in apart for left, right in splits)
        if not needed <= count[token] <= len(splits):
            raise UnsupportedTokenizerError(
                f"{where}: {token!r} has {count[token]} merges, but {needed} in a SentencePiece model", _HINT
            )


def merges_from_scores(scores: Mapping[str, float], vocab: Collection[str]) -> list[tuple[str, str]]:
    """Return the merges that join the same tokens as llama.cpp does by scores.

    Every split of a token into two tokens is a merge. Merges are sorted by score, best first. At equal scores, the
    merge with the longer left part comes first, as in Hugging Face's converter.

    Args:
        scores: score of every token that merging may make.
        vocab: the tokens that may be parts.
    """
    found: list[tuple[float, int, int, str, str]] = []
    for token, score in scores.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                found.append((-score, -cut, cut - len(token), left, right))
    found.sort(key=lambda row: row[:3])
    return [(left, right) for _, _, _, left, right in found]
