"""The known differences between llama.cpp's tokenizer and that of Hugging Face (docs/tokenizers.md lists them).

Each has a name, a condition on the tokenizer, and a change of tokenizer.json that makes Hugging Face's tokenizer do
what llama.cpp does. A difference on a text is explained if the changed tokenizer gives llama.cpp's ids. Every other
difference fails the parity gate. This needs no unpruned model, so `export` can use it for every checkpoint.

Names and rules are those of llama.cpp's src/llama-vocab.cpp (the release in llama-cpp-python 0.3.36).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers

from compact.vocabulary.end_tokens import END_TEXTS
from compact.vocabulary.pretokenizers import loses_nfc
from compact.vocabulary.sentencepiece_bpe import SPACE_MARK, is_sentencepiece_bpe, space_prefix, tokenizer_parts
from compact.vocabulary.tokenizer_json import steps
from exporters.gguf_writer.sentencepiece import VISIBLE, is_control
from exporters.llamacpp.engine import LlamaEngine

Document = dict[str, Any]
# (index of a text, whether special tokens in it are read as tokens).
Case = tuple[int, bool]

# llama.cpp makes these control tokens, or user-defined ones, because of their text alone.
_BY_NAME = END_TEXTS | frozenset(
    {
        "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>",
        "<|prefix|>", "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>",
        "<|code_suffix|>", "<|suffix|>", "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>",
        "▁<MID>", "<|code_middle|>", "<|middle|>", "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]",
        "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>", "<|channel|>",
        "<|message|>", "<|start|>", "<|constrain|>",
    }
)  # fmt: skip
_STRIPPING = ("lstrip", "rstrip", "single_word")


@dataclass(frozen=True)
class KnownDifference:
    """One known difference.

    Attributes:
        name: what llama.cpp does, for the report of the gate.
        applies: returns whether the difference can occur with a tokenizer.json.
        change: changes a tokenizer.json in place, so that it does what llama.cpp does. The second argument has the ids
            that llama.cpp does not find where special tokens are read as text.
    """

    name: str
    applies: Callable[[Document, Collection[int]], bool]
    change: Callable[[Document, Collection[int]], None]


def _entries(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    return document.get("added_tokens") or []


def _without_nfc(document: Document, _: Collection[int]) -> None:
    kept = [step for step in steps(document.get("normalizer"), "normalizers") if step.get("type") != "NFC"]
    document["normalizer"] = {"type": "Sequence", "normalizers": kept} if kept else None


def _adds_space(document: Document, _: Collection[int]) -> bool:
    return is_sentencepiece_bpe(document) and space_prefix(document)


def _with_space(document: Document, _: Collection[int]) -> None:
    parts = tokenizer_parts(prefix=True)
    document.update({key: parts[key] for key in ("normalizer", "pre_tokenizer")})


def _strips(document: Document, _: Collection[int]) -> bool:
    return any(entry.get(key) for entry in _entries(document) for key in _STRIPPING)


def _without_stripping(document: Document, _: Collection[int]) -> None:
    for entry in _entries(document):
        entry.update(dict.fromkeys(_STRIPPING, False))


def _other_kinds(document: Document, control: Collection[int]) -> Iterator[dict[str, Any]]:
    """Yield the added tokens whose kind llama.cpp or its converter takes from the text, and not from `special`."""
    for entry in _entries(document):
        text, special = str(entry["content"]), bool(entry.get("special"))
        by_text = text in _BY_NAME or text in VISIBLE or (is_control(entry, text) and not special)
        if by_text and special != (entry["id"] in control):
            yield entry


def _plain_by_name(document: Document, control: Collection[int]) -> dict[str, int]:
    """Return the plain tokens of the vocabulary that llama.cpp makes control tokens because of their text."""
    added = {entry["id"] for entry in _entries(document)}
    vocab = document["model"]["vocab"]
    named = {text: vocab[text] for text in sorted(_BY_NAME) if text in vocab}
    return {text: i for text, i in named.items() if i not in added and i in control}


def _has_other_kinds(document: Document, control: Collection[int]) -> bool:
    return bool(next(_other_kinds(document, control), None) or _plain_by_name(document, control))


def _with_other_kinds(document: Document, control: Collection[int]) -> None:
    for entry in list(_other_kinds(document, control)):
        entry["special"] = not entry.get("special")
    plain = _plain_by_name(document, control)
    flags = dict.fromkeys((*_STRIPPING, "normalized"), False)
    document["added_tokens"] = sorted(
        [*_entries(document), *({"id": i, "content": text, "special": True, **flags} for text, i in plain.items())],
        key=lambda entry: int(entry["id"]),
    )


def _marked(document: Document, control: Collection[int]) -> list[dict[str, Any]]:
    """Return the user-defined tokens that the converter writes with spaces instead of marks."""
    return [entry for entry in _entries(document) if SPACE_MARK in entry["content"] and entry["id"] not in control]


def _with_spaces(document: Document, control: Collection[int]) -> None:
    model, marked = document["model"], _marked(document, control)
    renamed = {entry["content"] for entry in marked}
    for entry in marked:
        entry["content"] = entry["content"].replace(SPACE_MARK, " ")
        entry["normalized"] = False
    # No token has the old texts any more, so merging cannot make them.
    model["vocab"] = {text: i for text, i in model["vocab"].items() if text not in renamed}
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    model["merges"] = [pair for pair in pairs if renamed.isdisjoint((*pair, "".join(pair)))]


KNOWN_DIFFERENCES = (
    KnownDifference("no NFC", lambda document, _: loses_nfc(document), _without_nfc),
    KnownDifference("a space before what follows a special token", _adds_space, _with_space),
    KnownDifference("white space beside an added token stays", _strips, _without_stripping),
    KnownDifference("control tokens by their text", _has_other_kinds, _with_other_kinds),
    KnownDifference("added tokens with spaces for marks", lambda d, c: bool(_marked(d, c)), _with_spaces),
)


def explained(
    backend: tokenizers.Tokenizer, engine: LlamaEngine, texts: Sequence[str], cases: Sequence[Case]
) -> dict[Case, str]:
    """Return the cases that known differences explain, with the names of these differences.

    Args:
        backend: the Hugging Face tokenizer of the checkpoint, as Transformers loads it.
        engine: llama.cpp with the GGUF of the checkpoint.
        texts: all texts.
        cases: the cases on which the two give different ids.
    """
    if not cases:
        return {}
    document: Document = json.loads(backend.to_str())
    control = frozenset(engine.control_ids())
    known = [each for each in KNOWN_DIFFERENCES if each.applies(document, control)]
    # First all changes together, because llama.cpp has all differences. Then each alone, in case they conflict.
    trials = [known, *([each] for each in known)] if len(known) > 1 else [known]
    theirs = {
        special: dict(zip(numbers, engine.tokenize([texts[n] for n in numbers], parse_special=special), strict=True))
        for special in (True, False)
        if (numbers := [n for n, as_special in cases if as_special is special])
    }
    found: dict[Case, str] = {}
    for trial in trials if known else ():
        changed = copy.deepcopy(document)
        for each in trial:
            each.change(changed, control)
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(changed))
        # The library gives added tokens new ids if the vocabulary lacks their text. Map them back.
        original_ids = {entry["content"]: int(entry["id"]) for entry in _entries(changed)}
        for n, special in (case for case in cases if case not in found):
            tokenizer.encode_special_tokens = not special
            encoding = tokenizer.encode(texts[n], add_special_tokens=False)
            if [original_ids.get(token, i) for token, i in zip(encoding.tokens, encoding.ids, strict=True)] == theirs[
                special
            ][n]:
                found[n, special] = ", ".join(each.name for each in trial)
    return found
