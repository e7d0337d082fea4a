"""Small SentencePiece-style BPE tokenizers: trained by SentencePiece, converted by Transformers, in every spelling."""

from __future__ import annotations

import copy
import functools
import io
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sentencepiece
from transformers import AutoTokenizer

from compact.vocabulary.language_costs import SENTENCES
from tests.checkpoints import TEXTS

MARK = "\u2581"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
CONTROL, FILLER, USER_DEFINED = "<|end|>", "<unused0>", "<tool>"
SPECIALS = ("<unk>", "<s>", "</s>")
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": MARK}
_PREPEND = {"type": "Prepend", "prepend": MARK}


def _metaspace(scheme: str) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": MARK, "prepend_scheme": scheme, "split": False}


# How the families spell the same thing; `None` is what Transformers 5 writes.
STYLES: Mapping[str, dict[str, Any] | None] = {
    "transformers 5": None,
    "llama 2": {"normalizer": {"type": "Sequence", "normalizers": [_PREPEND, _REPLACE]}, "pre_tokenizer": None},
    "metaspace always": {"normalizer": None, "pre_tokenizer": _metaspace("always")},
    "metaspace first": {"normalizer": None, "pre_tokenizer": _metaspace("first")},
    "gemma": {
        "normalizer": _REPLACE,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
    },
    "metaspace never": {"normalizer": None, "pre_tokenizer": _metaspace("never")},
}
# A space goes in front of every piece of text, as llama.cpp does it.
EXACT = ("transformers 5", "llama 2", "gemma", "metaspace never")


def has_prefix(style: str) -> bool:
    return style not in ("gemma", "metaspace never")


@functools.cache
def trained_model(prefix: bool = True) -> bytes:
    """A tokenizer.model of 1,100 pieces in which ids do not follow scores, as SentencePiece trains it."""
    sentences = [line for text in (*TEXTS, *SENTENCES.values()) for line in text.splitlines() if line.strip()]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences * 3),
        model_writer=model,
        model_type="bpe",
        vocab_size=1100,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        add_dummy_prefix=prefix,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        hard_vocab_limit=False,
        control_symbols=[CONTROL, FILLER],
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


@functools.cache
def _converted(prefix: bool) -> str:
    with tempfile.TemporaryDirectory() as name:
        source, out = Path(name, "source"), Path(name, "out")
        source.mkdir()
        (source / "tokenizer.model").write_bytes(trained_model(prefix))
        (source / "config.json").write_text(json.dumps({"model_type": "mistral"}))
        (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **NAMES}))
        AutoTokenizer.from_pretrained(source, local_files_only=True).save_pretrained(out)
        return (out / "tokenizer.json").read_text(encoding="utf-8")


def tokenizer_json(style: str, *, bos: bool = True) -> dict[str, Any]:
    """The trained model as tokenizer.json; the filler is an added token, a user-defined one stands beyond it."""
    document: dict[str, Any] = copy.deepcopy(json.loads(_converted(has_prefix(style))))
    document.update(STYLES[style] or {})
    vocab = document["model"]["vocab"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = {token: vocab[token] for token in (*SPECIALS, CONTROL, FILLER)} | {USER_DEFINED: len(vocab)}
    document["added_tokens"] = [
        {"id": i, "content": token, **flags, "special": token != USER_DEFINED} for token, i in added.items()
    ]
    first = [{"SpecialToken": {"id": "<s>", "type_id": 0}}] if bos else []
    text, pair = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    document["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [*first, text],
        "pair": [*first, text, *first, pair],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [vocab["<s>"]], "tokens": ["<s>"]}} if bos else {},
    }
    return document


def tokenizer_files(style: str, *, model: bool = True) -> dict[str, str | bytes]:
    """The files beside tokenizer.json."""
    files: dict[str, str | bytes] = {
        "tokenizer_config.json": json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **NAMES})
    }
    if model:
        files["tokenizer.model"] = trained_model(has_prefix(style))
    return files
