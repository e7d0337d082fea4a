"""Convert the tokenizer of a GGUF to tokenizer.json, tokenizer_config.json and chat templates (GGUF spec, "Tokenizer").

Supported are byte-level BPE (`tokenizer.ggml.model` = `gpt2`) and SentencePiece-style BPE (`llama` without merges,
`gemma4` with merges). For `llama`, tokenizer.model is written too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from compact.base.errors import DamagedFileError, UnsafePathError, UnsupportedTokenizerError
from compact.base.files import write_json
from compact.checkpoints.names import TOKENIZER, TOKENIZER_CONFIG, TOKENIZER_MODEL
from compact.sources import from_gguf_sentencepiece as gguf_sentencepiece
from compact.sources.from_gguf_pre import chosen_pre
from compact.vocabulary import sentencepiece_bpe
from compact.vocabulary.chat_templates import DEFAULT, PLAIN_NAME, write_chat_templates
from compact.vocabulary.pretokenizers import find, no_pre_tokenizer, tokenizer_parts
from compact.vocabulary.token_pieces import TokenPieces

_KINDS = {"t5": "SentencePiece unigram (t5)", "bert": "WordPiece (bert)"}
_MAX_TOKENS = 1 << 24
_TYPE = gguf.TokenType
# Types that become added tokens. The tokenizer searches for these first and then tokenizes the rest of the text.
_ADDED = (_TYPE.CONTROL, _TYPE.UNKNOWN, _TYPE.USER_DEFINED)
_ROLES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token",
          "seperator": "sep_token", "cls": "cls_token", "mask": "mask_token"}  # fmt: skip
# The next step for a vocabulary that is incomplete or contradicts itself. llama.cpp refuses most of them, too.
CONVERT_AGAIN = "convert the model again with a current llama.cpp, or start from its Hugging Face checkpoint"
_TEMPLATE_KEY = "tokenizer.chat_template"
# A key of this project. The exporter writes it if `prefix_token` would guess wrongly from the standard keys.
PREFIX_KEY = "compact.prefix_token_id"


def prefix_token(bos: int | None, eos: int | None, padding: int | None, *, adds_bos: bool) -> int | None:
    """Return the id to put before a text that has no context: BOS, or EOS if the tokenizer has no BOS.

    A GGUF does not record whether the tokenizer has a BOS. If it has none, converters write the BOS of config.json
    instead, which may be the padding token (Qwen). A BOS that equals the padding token and is not added to texts is
    therefore treated as missing.

    Args:
        bos: the BOS id of the file, or None.
        eos: the EOS id of the file, or None.
        padding: the padding id of the file, or None.
        adds_bos: whether the tokenizer adds BOS to texts.
    """
    borrowed = not adds_bos and bos == padding
    return eos if bos is None or (borrowed and eos is not None) else bos


@dataclass(frozen=True)
class GgufTokenizer:
    """A checked tokenizer of a GGUF.

    Attributes:
        pre: the name in `tokenizer.ggml.pre`, or `default` for SentencePiece-style BPE.
        json: tokenizer.json.
        ids: role (`bos`, `eos`, `unknown`, `padding`, `seperator`, `cls`, `mask`, `eot`, `eom`) -> id. The GGUF key
            spells it `seperator`.
        names: key of tokenizer_config.json (`bos_token`, ...) -> token.
        templates: name -> chat template. The main template is `default`.
        vocab_size: number of ids, including unused ones.
        model: tokenizer.model of a `llama` vocabulary, or None. None also if SentencePiece cannot express it.
    """

    pre: str
    json: Mapping[str, Any]
    ids: Mapping[str, int]
    names: Mapping[str, str]
    templates: Mapping[str, str]
    vocab_size: int
    model: bytes | None = None

    def write(self, out: Path, context: int) -> None:
        """Write the tokenizer's files into `out`. `context` is the model's maximum context length in tokens."""
        write_json(out / TOKENIZER, self.json)
        if self.model is not None:
            (out / TOKENIZER_MODEL).write_bytes(self.model)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": context,
            **self.names,
        }
        write_json(out / TOKENIZER_CONFIG, config)
        write_chat_templates(out, self.templates)


def read_tokenizer(values: Mapping[str, Any], where: str, pre: str | None = None) -> GgufTokenizer:
    """Read the tokenizer from the key-values of a GGUF.

    Args:
        values: key -> value.
        where: the file's path, for messages.
        pre: name of the pre-tokenizer (`--pre`), instead of the file's own.

    Raises:
        UsageError: `pre` is not in the table of `compact.vocabulary.pretokenizers`, or the tokenizer has no
            pre-tokenizer.
        UnsupportedTokenizerError: the tokenizer is neither byte-level nor SentencePiece-style BPE, or its
            pre-tokenizer is not in the table.
        DamagedFileError: tokens, types, scores, merges or special ids are damaged or contradict each other.
        UnsafePathError: the name of a chat template is not a plain name.
    """
    kind = values.get("tokenizer.ggml.model")
    if kind in gguf_sentencepiece.KINDS:
        if pre is not None:
            raise no_pre_tokenizer(pre, where)
        return _read_sentencepiece(values, str(kind), where)
    if kind != "gpt2":
        raise _unsupported(kind, where)
    pre = chosen_pre(values, pre, where)
    parts = tokenizer_parts(pre)
    tokens, types = _tokens(values, where)
    vocab = _vocab(tokens, types, where)
    ids = _special_ids(values, len(tokens), where)
    added = [
        {
            "id": i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": types[i] != _TYPE.USER_DEFINED,
        }
        for i, token in enumerate(tokens)
        if types[i] in _ADDED
    ]
    model = {
        "unk_token": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": parts["ignore_merges"],
        "vocab": vocab,
        "merges": _merges(values, vocab, where),
    }
    adds = _template_processor(values, find(pre).adds_bos, tokens, ids, where)
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    processor = byte_level if adds is None else {"type": "Sequence", "processors": [byte_level, adds]}
    names = _names(tokens, vocab, ids, values, find(pre).adds_bos)
    document = _document(added, parts, processor, model)
    return GgufTokenizer(pre, document, ids, names, _templates(values, where), len(tokens))


def _read_sentencepiece(values: Mapping[str, Any], kind: str, where: str) -> GgufTokenizer:
    tokens, types = _tokens(values, where, byte_tokens=True)
    vocab = _vocab(tokens, types, where)
    scored = gguf_sentencepiece.read_scored(values, kind, tokens, types, where)
    ids = gguf_sentencepiece.default_ids(kind, len(tokens)) | _special_ids(values, len(tokens), where)
    unknown = tokens[ids["unknown"]] if "unknown" in ids else None
    merges = _merges(values, vocab, where) if kind == "gemma4" else gguf_sentencepiece.scored_merges(scored)
    model = {
        "unk_token": unknown if unknown in vocab else None,
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": merges,
    }
    document = _document(
        gguf_sentencepiece.added_tokens(scored, values.get("general.name")),
        sentencepiece_bpe.tokenizer_parts(scored.prefix),
        _template_processor(values, True, tokens, ids, where),
        model,
    )
    return GgufTokenizer(
        sentencepiece_bpe.PRE_NAME,
        document,
        ids,
        _names(tokens, vocab, ids, values, True),
        _templates(values, where),
        len(tokens),
        gguf_sentencepiece.sentencepiece_file(scored, ids) if kind == "llama" else None,
    )


def read_gguf_pieces(values: Mapping[str, Any], where: str) -> TokenPieces:
    """Read the spelling of every token of a GGUF. The pre-tokenizer and merges are ignored.

    Args:
        values: key -> value.
        where: the file's path, for messages.

    Raises:
        UnsupportedTokenizerError: the tokenizer is neither byte-level nor SentencePiece-style BPE.
        DamagedFileError: the list of tokens or types is missing, or their lengths differ.
    """
    kind = values.get("tokenizer.ggml.model")
    sentencepiece = kind in gguf_sentencepiece.KINDS
    if kind != "gpt2" and not sentencepiece:
        raise _unsupported(kind, where)
    tokens, types = _tokens(values, where, byte_tokens=sentencepiece)
    added = frozenset(i for i, type_ in enumerate(types) if type_ in _ADDED)
    spelling = {i: token for i, token in enumerate(tokens) if types[i] != _TYPE.UNUSED}
    return TokenPieces(spelling, added, sentencepiece, where)


def _unsupported(kind: Any, where: str) -> UnsupportedTokenizerError:
    return UnsupportedTokenizerError(
        f"{where}: tokenizer kind {_KINDS.get(str(kind), str(kind)[:60])!r} is not supported",
        "supported in a GGUF: byte-level BPE (gpt2) and SentencePiece-style BPE (llama, gemma4)",
    )


def _document(
    added: list[dict[str, Any]], parts: Mapping[str, Any], processor: Any, model: Mapping[str, Any]
) -> dict[str, Any]:
    """Put tokenizer.json together from its parts."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": parts["normalizer"],
        "pre_tokenizer": parts["pre_tokenizer"],
        "post_processor": processor,
        "decoder": parts["decoder"],
        "model": {
            "type": "BPE",
            "dropout": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            **model,
        },
    }


def _vocab(tokens: list[str], types: list[int], where: str) -> dict[str, int]:
    vocab = {token: i for i, token in enumerate(tokens) if types[i] != _TYPE.UNUSED}
    if len(vocab) != sum(kind != _TYPE.UNUSED for kind in types):
        first: dict[str, int] = {}
        twice = next(
            i for i, token in enumerate(tokens) if types[i] != _TYPE.UNUSED and first.setdefault(token, i) != i
        )
        raise DamagedFileError(
            f"{where}: tokenizer.ggml.tokens has {tokens[twice][:60]!r} twice, as {first[tokens[twice]]} and {twice}",
            CONVERT_AGAIN,
        )
    return vocab


def _names(
    tokens: list[str], vocab: Mapping[str, int], ids: Mapping[str, int], values: Mapping[str, Any], adds_bos: bool
) -> dict[str, str]:
    """Return the special tokens for tokenizer_config.json. BOS is included only if the tokenizer itself has one."""
    names = {key: tokens[ids[role]] for role, key in _ROLES.items() if role in ids and tokens[ids[role]] in vocab}
    adds_bos = values.get("tokenizer.ggml.add_bos_token", adds_bos) is True
    guess = prefix_token(ids.get("bos"), ids.get("eos"), ids.get("padding"), adds_bos=adds_bos)
    if values.get(PREFIX_KEY, guess) != ids.get("bos"):
        names.pop("bos_token", None)
    return names


def _list_of(values: Mapping[str, Any], key: str, kind: type, where: str) -> list[Any]:
    value = values.get(key)
    if value is None:
        raise DamagedFileError(f"{where}: {key} is missing", CONVERT_AGAIN)
    if not isinstance(value, list) or not value or not isinstance(value[0], kind) or isinstance(value[0], bool):
        raise DamagedFileError(f"{where}: {key} is empty or not a list of {kind.__name__}", CONVERT_AGAIN)
    return value


def _tokens(values: Mapping[str, Any], where: str, *, byte_tokens: bool = False) -> tuple[list[str], list[int]]:
    tokens: list[str] = _list_of(values, "tokenizer.ggml.tokens", str, where)
    types: list[int] = _list_of(values, "tokenizer.ggml.token_type", int, where)
    if len(tokens) > _MAX_TOKENS or len(types) != len(tokens):
        raise DamagedFileError(
            f"{where}: {len(tokens)} tokens and {len(types)} token types; expected equal numbers, at most "
            f"{_MAX_TOKENS}",
            CONVERT_AGAIN,
        )
    # llama.cpp gives each empty text a name, because texts must differ.
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]
    known = {_TYPE.NORMAL, _TYPE.UNKNOWN, _TYPE.CONTROL, _TYPE.USER_DEFINED, _TYPE.UNUSED}
    if byte_tokens:
        known.add(_TYPE.BYTE)
    if odd := set(types) - {int(kind) for kind in known}:
        what = f"token type {min(odd)} is not valid for this type of tokenizer"
        raise UnsupportedTokenizerError(f"{where}: {what}", CONVERT_AGAIN)
    return tokens, types


def _merges(values: Mapping[str, Any], vocab: Mapping[str, int], where: str) -> list[list[str]]:
    """Return the merges as pairs. llama.cpp uses the first of two equal merges, so repeated ones are dropped."""
    pairs: dict[tuple[str, str], None] = {}
    for number, merge in enumerate(_list_of(values, "tokenizer.ggml.merges", str, where)):
        # The first token may begin with a space, so the search starts at the second character.
        cut = merge.find(" ", 1)
        first, second = merge[:cut], merge[cut + 1 :]
        if cut < 0 or first not in vocab or second not in vocab or first + second not in vocab:
            what = f"merge {number} ({merge[:60]!r}) has a part or result that is not a token"
            raise DamagedFileError(f"{where}: {what}", CONVERT_AGAIN)
        pairs[first, second] = None
    return [[first, second] for first, second in pairs]


def _special_ids(values: Mapping[str, Any], n_tokens: int, where: str) -> dict[str, int]:
    ids = {}
    for role in (*_ROLES, "eot", "eom"):
        key = f"tokenizer.ggml.{role}_token_id"
        value = values.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < n_tokens:
            raise DamagedFileError(f"{where}: {key} = {value!r}, but there are {n_tokens} tokens")
        ids[role] = value
    return ids


def _template_processor(
    values: Mapping[str, Any], adds_bos: bool, tokens: list[str], ids: Mapping[str, int], where: str
) -> dict[str, Any] | None:
    """Return the post-processor that adds BOS and EOS, or None if neither is added.

    Args:
        values: key -> value.
        adds_bos: llama.cpp's default if the file does not say whether BOS is added.
        tokens: text of every id.
        ids: role -> id.
        where: the file's path, for messages.
    """
    adds = {
        "bos": values.get("tokenizer.ggml.add_bos_token", adds_bos),
        "eos": values.get("tokenizer.ggml.add_eos_token", False),
    }
    used: dict[str, str] = {}
    for role, add in adds.items():
        if add is True and role not in ids:
            raise DamagedFileError(
                f"{where}: the tokenizer adds {role.upper()}, but tokenizer.ggml.{role}_token_id is missing"
            )
        if add is True:
            used[role] = tokens[ids[role]]
    if not used:
        return None
    first, last = [used["bos"]] if "bos" in used else [], [used["eos"]] if "eos" in used else []
    between = _between(values.get("tokenizer.ggml.add_sep_token"), used, tokens, ids)
    special = {
        token: {"id": token, "ids": [tokens.index(token)], "tokens": [token]} for token in [*first, *between, *last]
    }
    single = [*_pieces(first, 0), {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*single, *_pieces(between, 1), {"Sequence": {"id": "B", "type_id": 1}}, *_pieces(last, 1)]
    single += _pieces(last, 0)
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}


def _pieces(tokens: list[str], type_id: int) -> list[dict[str, Any]]:
    return [{"SpecialToken": {"id": token, "type_id": type_id}} for token in tokens]


def _between(add_sep: Any, used: Mapping[str, str], tokens: list[str], ids: Mapping[str, int]) -> list[str]:
    """Return the tokens between the two texts of a pair. The GGUF has the key only if the tokenizer puts some there."""
    if add_sep is None:
        return []
    if add_sep is True:
        role = "seperator" if "seperator" in ids else "eos"
        return [tokens[ids[role]]] if role in ids else []
    return [used.get("eos", used.get("bos", ""))]


def _templates(values: Mapping[str, Any], where: str) -> dict[str, str]:
    templates = {}
    for key, value in values.items():
        if key != _TEMPLATE_KEY and not key.startswith(_TEMPLATE_KEY + "."):
            continue
        name = key[len(_TEMPLATE_KEY) + 1 :] or DEFAULT
        if not PLAIN_NAME.match(name):
            raise UnsafePathError(f"{where}: chat template name {name[:60]!r} is not a plain name")
        if not isinstance(value, str):
            raise DamagedFileError(f"{where}: {key} is not text")
        if value.strip():  # llama.cpp treats an empty template like none
            templates[name] = value
    return templates
