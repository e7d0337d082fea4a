"""The table between tokenizer.json's pre-tokenizer and llama.cpp's `tokenizer.ggml.pre`, read in both directions.

llama.cpp has no regular expressions of the model in the file: it knows a fixed list of pre-tokenizers by name (GGUF
spec, "Tokenizer", `tokenizer.ggml.pre`). Its own converter finds the name by hashing the token ids of a fixed text, so
it refuses every vocabulary that it has not seen, a pruned one above all. Here the key is what pruning keeps: the
canonical JSON of the pre-tokenizer and the `ignore_merges` flag. The architecture says nothing: SmolLM2 and Llama 3
are both `LlamaForCausalLM`.

Every row is checked for id-equality with llama.cpp in `tests/compact/test_pretokenizers.py`. llama.cpp has no Unicode
normalizer for BPE; a tokenizer with NFC (the Qwen family) therefore gets other ids for text that is not in NFC, before
and after pruning alike. `loses_nfc` tells the caller, who counts those texts apart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compact.errors import UnsupportedTokenizerError
from compact.sentencepiece_bpe import PRE_NAME, is_sentencepiece_bpe, space_prefix
from compact.tokenizer_json import bpe_model, short, steps

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BYTES_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_BYTES_ONLY = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def _split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def _gpt4_style(letters: str, not_symbols: str, digits: str) -> dict[str, Any]:
    """The Split of the GPT-4 pattern: what counts as a letter, what is no symbol, how many digits stay together."""
    return _split(
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?{letters}+|{digits}| ?[^\s{not_symbols}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


@dataclass(frozen=True)
class PreTokenizer:
    r"""One pre-tokenizer of llama.cpp.

    Attributes:
        name: the value of `tokenizer.ggml.pre` that we write.
        steps: the steps of tokenizer.json's pre_tokenizer, in order.
        ignore_merges: a whole pre-token that is in the vocabulary is used even where no merge path leads to it;
            llama.cpp derives this from the name.
        adds_bos: llama.cpp adds BOS where the file has no `tokenizer.ggml.add_bos_token`.
        aliases: further names that llama.cpp treats alike (same pattern, same flags), for reading a GGUF.
        example: a Hub id with this pre-tokenizer.
    """

    name: str
    steps: tuple[Mapping[str, Any], ...]
    example: str
    ignore_merges: bool = False
    adds_bos: bool = False
    aliases: tuple[str, ...] = ()


_LLAMA3 = _gpt4_style(r"\p{L}", r"\p{L}\p{N}", r"\p{N}{1,3}")

PRE_TOKENIZERS: tuple[PreTokenizer, ...] = (
    PreTokenizer(
        name="smollm",
        steps=({"type": "Digits", "individual_digits": True}, _BYTES_GPT2),
        example="HuggingFaceTB/SmolLM2-135M-Instruct",
        aliases=("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
    ),
    PreTokenizer(
        name="gpt-2",
        steps=(_BYTES_GPT2,),
        example="openai-community/gpt2",
        aliases=("phi-2", "mpt", "olmo", "jais", "trillion", "exaone4", "gigachat"),
    ),
    PreTokenizer(
        name="llama-bpe",
        steps=(_LLAMA3, _BYTES_ONLY),
        example="meta-llama/Llama-3.2-1B",
        ignore_merges=True,
        adds_bos=True,
        aliases=("llama3", "llama-v3", "falcon3", "pixtral", "lfm2"),
    ),
    PreTokenizer(
        name="smaug-bpe",
        steps=(_LLAMA3, _BYTES_ONLY),
        example="abacusai/Smaug-Llama-3-70B-Instruct",
        aliases=("dbrx",),
    ),
    PreTokenizer(
        name="qwen2",
        steps=(_gpt4_style(r"\p{L}", r"\p{L}\p{N}", r"\p{N}"), _BYTES_ONLY),
        example="Qwen/Qwen2.5-0.5B-Instruct",
        aliases=("deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan"),
    ),
    PreTokenizer(
        name="qwen35",
        steps=(_gpt4_style(r"[\p{L}\p{M}]", r"\p{L}\p{M}\p{N}", r"\p{N}"), _BYTES_ONLY),
        example="Qwen/Qwen3.5-9B-Instruct",
    ),
)

KNOWN_NAMES = ", ".join(sorted(row.name for row in PRE_TOKENIZERS))


def _canonical_step(step: Mapping[str, Any]) -> dict[str, Any]:
    """One step without what cannot change token ids, and with the defaults of `tokenizers` filled in."""
    kind = step.get("type")
    if kind == "ByteLevel":
        return {
            "type": kind,
            "add_prefix_space": step.get("add_prefix_space", True),
            "use_regex": step.get("use_regex", True),
        }
    if kind == "Digits":
        return {"type": kind, "individual_digits": step.get("individual_digits", False)}
    if kind == "Split":
        behaviour, invert = step.get("behavior"), step.get("invert", False)
        # "remove what is not matched" and "isolate what is matched" are one where the pattern covers every text,
        # and each pattern of the table does (`\s+` and `[^\s...]+` close it).
        if behaviour == "Removed" and invert:
            behaviour, invert = "Isolated", False
        return {"type": kind, "pattern": step.get("pattern"), "behavior": behaviour, "invert": invert}
    return dict(step)


def _key(steps: list[Mapping[str, Any]], ignore_merges: bool) -> str:
    return json.dumps([[_canonical_step(step) for step in steps], ignore_merges], sort_keys=True)


_BY_KEY = {_key(list(row.steps), row.ignore_merges): row for row in PRE_TOKENIZERS}
_BY_NAME = {name: row for row in PRE_TOKENIZERS for name in (row.name, *row.aliases)}


def byte_level_bpe(tokenizer_json: Mapping[str, Any]) -> Mapping[str, Any]:
    """The `model` of tokenizer.json, if it is byte-level BPE as llama.cpp's `gpt2` tokenizer implements it.

    Raises:
        UnsupportedTokenizerError: it is another kind (Unigram, WordPiece, SentencePiece-style BPE).
    """
    model = bpe_model(tokenizer_json)
    if model.get("byte_fallback"):
        raise UnsupportedTokenizerError("tokenizer.json: SentencePiece-style BPE, where byte-level BPE was expected")
    return model


def _normalizers(tokenizer_json: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return steps(tokenizer_json.get("normalizer"), "normalizers")


def pre_name(tokenizer_json: Mapping[str, Any]) -> str:
    """llama.cpp's name for the pre-tokenizer of a tokenizer.json.

    Args:
        tokenizer_json: the parsed file.

    Returns:
        The value for `tokenizer.ggml.pre` (GGUF spec, "Tokenizer"); `default` for SentencePiece-style BPE, which
        llama.cpp does not pre-tokenize.

    Raises:
        UnsupportedTokenizerError: not BPE, or no row has this normalizer, pre_tokenizer and ignore_merges;
            the hint lists the known names.
    """
    if is_sentencepiece_bpe(tokenizer_json):
        space_prefix(tokenizer_json)
        return PRE_NAME
    model = byte_level_bpe(tokenizer_json)
    normalizers = _normalizers(tokenizer_json)
    if [step.get("type") for step in normalizers] not in ([], ["NFC"]):
        raise UnsupportedTokenizerError(
            f"tokenizer.json: normalizer {short(normalizers)} has no counterpart in llama.cpp",
            f"known pre-tokenizers: {KNOWN_NAMES}; with no normalizer or NFC",
        )
    pre_steps = steps(tokenizer_json.get("pre_tokenizer"), "pretokenizers")
    row = _BY_KEY.get(_key(pre_steps, bool(model.get("ignore_merges"))))
    if row is None:
        raise UnsupportedTokenizerError(
            f"tokenizer.json: pre_tokenizer {short(pre_steps)} with ignore_merges = {bool(model.get('ignore_merges'))} "
            "has no known counterpart in llama.cpp",
            f"known: {KNOWN_NAMES}; add a row to compact/pretokenizers.py, or give the name of llama.cpp yourself",
        )
    return row.name


def loses_nfc(tokenizer_json: Mapping[str, Any]) -> bool:
    """True where tokenizer.json normalizes to NFC, which llama.cpp does not do: text not in NFC gets other ids."""
    return any(step.get("type") == "NFC" for step in _normalizers(tokenizer_json))


def find(pre: str) -> PreTokenizer:
    """The row for a name found in a GGUF (aliases count). Raises UnsupportedTokenizerError listing the known names."""
    row = _BY_NAME.get(pre)
    if row is None:
        raise UnsupportedTokenizerError(
            f"tokenizer.ggml.pre {pre[:60]!r} is not supported", f"known: {', '.join(sorted(_BY_NAME))}"
        )
    return row


def tokenizer_parts(pre: str) -> dict[str, Any]:
    """The parts of tokenizer.json that llama.cpp's name stands for (the table read backwards).

    Args:
        pre: the value of `tokenizer.ggml.pre`.

    Returns:
        `normalizer` (always None: llama.cpp has none, so ids stay equal to the GGUF's), `pre_tokenizer` and `decoder`
        as tokenizer.json holds them, and `ignore_merges` for its model.

    Raises:
        UnsupportedTokenizerError: the name is not in the table.
    """
    row = find(pre)
    steps = [dict(step) for step in row.steps]
    return {
        "normalizer": None,
        "pre_tokenizer": steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "ignore_merges": row.ignore_merges,
    }
