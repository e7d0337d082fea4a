"""Map the pre-tokenizer of tokenizer.json to llama.cpp's `tokenizer.ggml.pre`, and back.

A GGUF does not contain the regular expressions of a pre-tokenizer. It has a name from llama.cpp's fixed list (GGUF
spec, "Tokenizer", `tokenizer.ggml.pre`). llama.cpp's converter finds the name by hashing the token ids of a fixed text,
so it rejects vocabularies that it does not know, including every pruned one. The table here uses keys that pruning does
not change: the canonical JSON of the pre-tokenizer, and the `ignore_merges` flag. The architecture does not determine
the pre-tokenizer: SmolLM2 and Llama 3 are both `LlamaForCausalLM`.

`tests/compact/vocabulary/test_pretokenizers.py` checks for every row that llama.cpp gives the same ids.

llama.cpp has no Unicode normalizer for BPE. A tokenizer with NFC (the Qwen family) therefore gets different ids there
for text that is not in NFC, with or without pruning. `loses_nfc` detects such tokenizers, so that callers can count
such texts separately.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from compact.base.errors import UnsupportedTokenizerError, UsageError
from compact.vocabulary.sentencepiece_bpe import PRE_NAME, is_sentencepiece_bpe, space_prefix
from compact.vocabulary.tokenizer_json import bpe_model, short, steps

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BYTES_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_BYTES_ONLY = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def _split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def _gpt4_style(letters: str, not_symbols: str, digits: str) -> dict[str, Any]:
    """Return a Split with the GPT-4 pattern.

    Args:
        letters: pattern of one letter.
        not_symbols: character classes that are not symbols.
        digits: pattern of a group of digits.
    """
    return _split(
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?{letters}+|{digits}| ?[^\s{not_symbols}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


@dataclass(frozen=True)
class PreTokenizer:
    r"""One pre-tokenizer of llama.cpp.

    Attributes:
        name: the value written to `tokenizer.ggml.pre`.
        steps: the steps of pre_tokenizer in tokenizer.json, in order.
        example: the Hub id of a model with this pre-tokenizer.
        ignore_merges: use a pre-token that is in the vocabulary as one token, even if no merges produce it. llama.cpp
            derives this flag from the name.
        adds_bos: llama.cpp adds BOS if the file has no `tokenizer.ggml.add_bos_token`.
        aliases: other names with the same pattern and flags in llama.cpp, for reading a GGUF.
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
# Other names of llama.cpp (`llama_vocab::impl::load` of the release in llama-cpp-python 0.3.36) for byte-level BPE. A
# checkpoint brings its own tokenizer.json, so a user may choose one of them with --pre, and the parity gate compares.
OTHER_NAMES = frozenset(
    {
        "a.x-4.0", "afmoe", "bailingmoe", "bailingmoe2", "bloom", "chameleon", "chatglm-bpe", "cohere2moe",
        "deepseek-coder", "deepseek-llm", "deepseek-v3", "exaone-moe", "f2llmv2", "falcon", "falcon-h1", "glm4",
        "gpt-4o", "gpt3-finnish", "granite-docling", "grok-2", "hunyuan-dense", "hy_v4", "jais-2", "joyai-llm",
        "kanana2", "kimi-k2", "kormo", "laguna", "llada-moe", "llama4", "mellum", "mellum2", "midm-2.0", "minicpm5",
        "minimax-m2", "poro-chat", "seed-coder", "solar-open", "spark2_5", "superbpe", "talkie", "tekken", "tiny_aya",
        "ufakzeka", "viking", "youtu",
    }
)  # fmt: skip


def _canonical_step(step: Mapping[str, Any]) -> dict[str, Any]:
    """Return a step without settings that do not affect token ids, and with the defaults of `tokenizers` filled in."""
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
        # "Remove what does not match" equals "isolate what matches" if the pattern covers every text. Each pattern of
        # the table does, because it ends with `\s+` and has `[^\s...]+`.
        if behaviour == "Removed" and invert:
            behaviour, invert = "Isolated", False
        return {"type": kind, "pattern": step.get("pattern"), "behavior": behaviour, "invert": invert}
    return dict(step)


def _key(steps: list[Mapping[str, Any]], ignore_merges: bool) -> str:
    return json.dumps([[_canonical_step(step) for step in steps], ignore_merges], sort_keys=True)


_BY_KEY = {_key(list(row.steps), row.ignore_merges): row for row in PRE_TOKENIZERS}
_BY_NAME = {name: row for row in PRE_TOKENIZERS for name in (row.name, *row.aliases)}
READABLE_NAMES = ", ".join(sorted(_BY_NAME))


def byte_level_bpe(tokenizer_json: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the `model` of tokenizer.json. It must be byte-level BPE as in llama.cpp's `gpt2` tokenizer.

    Raises:
        UnsupportedTokenizerError: it is another type (Unigram, WordPiece, SentencePiece-style BPE).
    """
    model = bpe_model(tokenizer_json)
    if model.get("byte_fallback"):
        raise UnsupportedTokenizerError(
            "tokenizer.json: expected byte-level BPE, found SentencePiece-style BPE",
            "docs/tokenizers.md lists the supported tokenizers",
        )
    return model


def _normalizers(tokenizer_json: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return steps(tokenizer_json.get("normalizer"), "normalizers")


def pre_name(tokenizer_json: Mapping[str, Any]) -> str:
    """Return llama.cpp's name for the pre-tokenizer of a tokenizer.json.

    Args:
        tokenizer_json: the parsed file.

    Returns:
        The value for `tokenizer.ggml.pre` (GGUF spec, "Tokenizer"). `default` for SentencePiece-style BPE, for which
        llama.cpp does not pre-tokenize.

    Raises:
        UnsupportedTokenizerError: the tokenizer is not BPE, or the table has no row for its pre_tokenizer and
            ignore_merges, or llama.cpp does not support its normalizer. The hint lists the known names.
    """
    if is_sentencepiece_bpe(tokenizer_json):
        space_prefix(tokenizer_json)
        return PRE_NAME
    model = byte_level_bpe(tokenizer_json)
    normalizers = _normalizers(tokenizer_json)
    if [step.get("type") for step in normalizers] not in ([], ["NFC"]):
        raise UnsupportedTokenizerError(
            f"tokenizer.json: normalizer {short(normalizers)} has no equivalent in llama.cpp",
            f"supported pre-tokenizers: {KNOWN_NAMES}; with NFC or no normalizer",
        )
    pre_steps = steps(tokenizer_json.get("pre_tokenizer"), "pretokenizers")
    row = _BY_KEY.get(_key(pre_steps, bool(model.get("ignore_merges"))))
    if row is None:
        raise UnsupportedTokenizerError(
            f"tokenizer.json: pre_tokenizer {short(pre_steps)} with ignore_merges = {bool(model.get('ignore_merges'))} "
            "has no known equivalent in llama.cpp",
            "if llama.cpp has an equivalent, name it with --pre; the parity gate then compares the two (known without "
            f"--pre: {KNOWN_NAMES})",
        )
    return row.name


def pre_tokenizer_key(tokenizer_json: Mapping[str, Any]) -> str:
    """Return a text that is equal for two tokenizers of byte-level BPE that split text alike, apart from NFC."""
    normalizers = [dict(step) for step in _normalizers(tokenizer_json) if step.get("type") != "NFC"]
    pre_steps = steps(tokenizer_json.get("pre_tokenizer"), "pretokenizers")
    return json.dumps([normalizers, _key(pre_steps, bool(tokenizer_json["model"].get("ignore_merges")))])


def loses_nfc(tokenizer_json: Mapping[str, Any]) -> bool:
    """Return whether tokenizer.json normalizes to NFC.

    llama.cpp does not, so text that is not in NFC gets different ids.
    """
    return any(step.get("type") == "NFC" for step in _normalizers(tokenizer_json))


def is_readable(pre: Any) -> bool:
    """Return whether the table has this name or alias, so that a GGUF with it can be read."""
    return isinstance(pre, str) and pre in _BY_NAME


def no_pre_tokenizer(pre: str, where: str) -> UsageError:
    """Return the error for `--pre` with a SentencePiece-style tokenizer."""
    return UsageError(f"--pre {pre[:60]}: {where} is SentencePiece-style and has no pre-tokenizer", "leave out --pre")


def check_name(pre: str) -> None:
    """Raise UsageError if llama.cpp has no pre-tokenizer of this name, or only for tokenizers of another kind."""
    if pre not in _BY_NAME and pre not in OTHER_NAMES:
        every = sorted({*_BY_NAME, *OTHER_NAMES})
        close = get_close_matches(pre, every, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"one of: {', '.join(every)}"
        raise UsageError(f"--pre {pre[:60]!r}: llama.cpp has no pre-tokenizer of this name", hint)


def checked_pre(pre: str, tokenizer_json: Mapping[str, Any], where: str) -> str:
    """Check the name that a user gave with `--pre` for a checkpoint. Return the name to write to a GGUF.

    Args:
        pre: the name.
        tokenizer_json: the parsed file of the checkpoint.
        where: its path, for messages.

    Raises:
        UsageError: llama.cpp has no such name, the tokenizer has no pre-tokenizer, or it is known to be another one.
    """
    if is_sentencepiece_bpe(tokenizer_json):
        raise no_pre_tokenizer(pre, where)
    check_name(pre)
    try:
        own = pre_name(tokenizer_json)
    except UnsupportedTokenizerError:
        return _BY_NAME[pre].name if pre in _BY_NAME else pre
    if pre not in _BY_NAME or _BY_NAME[pre].name != own:
        raise UsageError(f"--pre {pre}: {where} has the pre-tokenizer {own!r}", "leave out --pre")
    return own


def find(pre: str) -> PreTokenizer:
    """Return the row for a name or alias in a GGUF. Raises UnsupportedTokenizerError, which lists the known names."""
    row = _BY_NAME.get(pre)
    if row is None:
        raise UnsupportedTokenizerError(f"tokenizer.ggml.pre {pre[:60]!r} is not supported", f"known: {READABLE_NAMES}")
    return row


def tokenizer_parts(pre: str) -> dict[str, Any]:
    """Return the parts of tokenizer.json that correspond to a name of llama.cpp.

    Args:
        pre: the value of `tokenizer.ggml.pre`.

    Returns:
        `normalizer`, `pre_tokenizer` and `decoder` of tokenizer.json, and `ignore_merges` of its model. `normalizer` is
        None: llama.cpp has no normalizer, and the ids must equal those of the GGUF.

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
