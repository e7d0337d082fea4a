"""Writes the tokenizer of a GGUF: tokens, types, merges, special ids, and whether BOS and EOS are added.

llama.cpp's converter derives some values from the vocabulary size: a Llama with 49,152 tokens gets no BOS. A pruned
model has another vocabulary size. This module derives the values from the behaviour of tokenizer.json instead.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import tokenizers

from compact.architectures.family import Family
from compact.base.errors import DamagedFileError, UnsupportedTokenizerError
from compact.base.files import read_json_object
from compact.checkpoints.names import CONFIG, TOKENIZER
from compact.sources.from_gguf_tokenizer import PREFIX_KEY, prefix_token
from compact.vocabulary.chat_templates import DEFAULT, check_template_names, read_chat_templates
from compact.vocabulary.end_tokens import end_ids
from compact.vocabulary.loading import load_tokenizer, tokenizer_document, tokenizer_settings
from compact.vocabulary.pretokenizers import byte_level_bpe, pre_name
from compact.vocabulary.sentencepiece_bpe import is_sentencepiece_bpe
from compact.vocabulary.sentencepiece_bpe import space_prefix as has_space_prefix
from exporters.gguf_writer.end_keys import end_keys
from exporters.gguf_writer.sentencepiece import is_control, merged_tokens, scored_tokens

_CODELLAMA_EOT = "\u2581<EOT>"
_PROBE = "a"
_SPACE_LETTER = "\u0120"
_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


def add_tokenizer(
    writer: gguf.GGUFWriter, checkpoint: Path, vocab_size: int, family: Family, *, pre: str | None
) -> str:
    """Write `tokenizer.*` (GGUF spec, "Tokenizer"); return the pre-tokenizer's name.

    Args:
        writer: receives the keys.
        checkpoint: directory with tokenizer.json and, optionally, tokenizer_config.json.
        vocab_size: rows of the embedding. Ids without a token become `[PADn]` with type UNUSED.
        family: the row of the family table. The Llama layout takes `add_space_prefix` from tokenizer_config.json.
        pre: `tokenizer.ggml.pre`; None: look it up in the table.

    SentencePiece-style BPE becomes the family's tokenizer model: `llama`, or `gemma4`, which also has merges.
    Byte-level BPE becomes `gpt2`.

    Raises:
        UnsupportedTokenizerError: the tokenizer is neither byte-level nor SentencePiece-style BPE, its pre-tokenizer is
            unknown, scores cannot express its merges, or llama.cpp cannot add its special tokens.
        DamagedFileError: ids or texts contradict each other.
    """
    path = checkpoint / TOKENIZER
    tokenizer_json = tokenizer_document(checkpoint)
    sentencepiece = is_sentencepiece_bpe(tokenizer_json)
    prefix = sentencepiece and has_space_prefix(tokenizer_json)
    if not sentencepiece:
        byte_level_bpe(tokenizer_json)
    name = pre if pre is not None else pre_name(tokenizer_json)
    try:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json))
    except Exception as error:  # tokenizers raises bare Exception
        raise DamagedFileError(f"{path}: the tokenizers library cannot load it: {str(error)[:160]}") from error
    tokenizer.no_padding()
    config = tokenizer_settings(checkpoint)
    if sentencepiece and not prefix:
        writer.add_add_space_prefix(False)  # without the key, llama.cpp would add a space
    elif family.writes_vocab_size and isinstance(config.get("add_prefix_space"), bool):
        writer.add_add_space_prefix(prefix if sentencepiece else config["add_prefix_space"])
    if sentencepiece and not prefix and family.tokenizer_model == "gemma4":
        writer.add_tokenizer_model("gemma4")  # this model includes its pre-tokenizer
        table = merged_tokens(tokenizer_json, token_texts(tokenizer_json, vocab_size, str(path)), vocab_size, str(path))
        writer.add_token_list(table.tokens)
        writer.add_token_scores(table.scores)
        writer.add_token_types(table.types)
        writer.add_token_merges(_merges(tokenizer_json, str(path)))
    elif sentencepiece:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre(name)
        table = scored_tokens(
            checkpoint, tokenizer_json, token_texts(tokenizer_json, vocab_size, str(path)), vocab_size
        )
        writer.add_token_list(table.tokens)
        writer.add_token_scores(table.scores)
        writer.add_token_types(table.types)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(name)
        tokens, types = token_table(tokenizer_json, tokenizer, vocab_size, str(path))
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        writer.add_token_merges(_merges(tokenizer_json, str(path)))
    ids = _special_ids(tokenizer_json, config, read_json_object(checkpoint / CONFIG), vocab_size)
    _choose_eos(ids, checkpoint, named=_named_id("eos", _added_ids(tokenizer_json), config) is not None)
    adds_bos = _add_special(writer, tokenizer, ids, str(path))
    named = _named_id("bos", _added_ids(tokenizer_json), config)
    first = _prefix_in_transformers(checkpoint) if named is None else named
    guess = prefix_token(ids.get("bos"), ids.get("eos"), ids.get("pad"), adds_bos=adds_bos)
    # For a missing token, a loader assigns a new id, which has no embedding row.
    if first is not None and first != guess and first < vocab_size:
        writer.add_uint32(PREFIX_KEY, first)
    keys = end_keys(
        checkpoint, token_texts(tokenizer_json, vocab_size, str(path)), ids.get("eos"), _eot(tokenizer_json)
    )
    for role, token in keys.items():
        getattr(writer, f"add_{role}_token_id")(token)
    _add_chat_templates(writer, checkpoint)
    return name


def check_tokenizer(checkpoint: Path, vocab_size: int) -> None:
    """Check end tokens and chat templates before any expensive work. Raises the errors of `add_tokenizer`."""
    path = checkpoint / TOKENIZER
    tokenizer_json, config = tokenizer_document(checkpoint), tokenizer_settings(checkpoint)
    if not is_sentencepiece_bpe(tokenizer_json):
        byte_level_bpe(tokenizer_json)
    check_template_names(checkpoint)
    # A later stage names what is wrong with a malformed tokenizer.json.
    with contextlib.suppress(KeyError, TypeError, AttributeError):
        ids = _special_ids(tokenizer_json, config, read_json_object(checkpoint / CONFIG), vocab_size)
        _choose_eos(ids, checkpoint, named=_named_id("eos", _added_ids(tokenizer_json), config) is not None)
        if "eos" in ids or not tokenizer_json.get("post_processor"):  # the post-processor may add an end token
            texts = token_texts(tokenizer_json, vocab_size, str(path))
            end_keys(checkpoint, texts, ids.get("eos"), _eot(tokenizer_json))


def token_table(
    tokenizer_json: Mapping[str, Any], tokenizer: tokenizers.Tokenizer, vocab_size: int, where: str
) -> tuple[list[str], list[int]]:
    """Return the texts and `gguf.TokenType` values of ids 0 to `vocab_size - 1`.

    Args:
        tokenizer_json: the parsed tokenizer.json.
        tokenizer: the tokenizer loaded from that file.
        vocab_size: rows of the embedding.
        where: path of the file, for messages.

    Raises:
        DamagedFileError: an id has no row in the embedding or has two tokens, or two ids have the same text (llama.cpp
            aborts).
    """
    texts = token_texts(tokenizer_json, vocab_size, where)
    added = {entry["id"]: entry for entry in tokenizer_json.get("added_tokens") or ()}
    tokens, types = [], []
    for token_id in range(vocab_size):
        text = texts.get(token_id)
        if text is None:
            kind, text = gguf.TokenType.UNUSED, f"[PAD{token_id}]"
        elif token_id in added:
            kind, text = _added_token(added[token_id], tokenizer)
        else:
            kind = gguf.TokenType.NORMAL
        tokens.append(text)
        types.append(int(kind))
    if len(set(tokens)) != len(tokens):
        seen: set[str] = set()
        twice = next(text for text in tokens if text in seen or seen.add(text))  # type: ignore[func-returns-value]
        raise DamagedFileError(
            f"{where}: token {twice[:60]!r} has two ids", "llama.cpp needs a different text for each id"
        )
    return tokens, types


def token_texts(tokenizer_json: Mapping[str, Any], vocab_size: int, where: str) -> dict[int, str]:
    """Return id -> text for the model's vocabulary and the added tokens.

    Raises:
        DamagedFileError: an id is not below `vocab_size`, or has two tokens.
    """
    texts: dict[int, str] = {}
    for text, token_id in tokenizer_json["model"]["vocab"].items():
        _put(texts, token_id, text, vocab_size, where)
    for entry in tokenizer_json.get("added_tokens") or ():
        if texts.get(entry["id"]) != entry["content"]:
            _put(texts, entry["id"], entry["content"], vocab_size, where)
    return texts


def _put(texts: dict[int, str], token_id: Any, text: Any, vocab_size: int, where: str) -> None:
    if not isinstance(token_id, int) or isinstance(token_id, bool) or not isinstance(text, str):
        raise DamagedFileError(f"{where}: token {str(text)[:60]!r} has the invalid id {token_id!r}")
    if not 0 <= token_id < vocab_size:
        raise DamagedFileError(
            f"{where}: token {text[:60]!r} has id {token_id}, but the embedding has {vocab_size} rows",
            "use the tokenizer that belongs to these weights",
        )
    if token_id in texts:
        raise DamagedFileError(f"{where}: id {token_id} has two tokens, {texts[token_id][:60]!r} and {text[:60]!r}")
    texts[token_id] = text


def _added_token(entry: Mapping[str, Any], tokenizer: tokenizers.Tokenizer) -> tuple[gguf.TokenType, str]:
    text: str = entry["content"]
    if not entry.get("normalized"):
        # llama.cpp matches added tokens against raw text, so write the text as the tokenizer encodes and decodes it.
        text = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)
    if is_control(entry, text):
        return gguf.TokenType.CONTROL, text
    return gguf.TokenType.USER_DEFINED, text.replace("\u2581", " ")


def _merges(tokenizer_json: Mapping[str, Any], where: str) -> list[str]:
    """Return the merges as `first second`, from either format of tokenizer.json."""
    merges = tokenizer_json["model"].get("merges")
    if not isinstance(merges, list) or not merges:
        raise UnsupportedTokenizerError(
            f"{where}: the tokenizer has no merges", "llama.cpp needs the merges of a BPE tokenizer"
        )
    if isinstance(merges[0], str):
        return merges
    # A space inside a piece would look like the separator, so write it as its byte-level letter.
    return [" ".join(piece.replace(" ", _SPACE_LETTER) for piece in pair) for pair in merges]


def _special_ids(
    tokenizer_json: Mapping[str, Any], tokenizer_config: Mapping[str, Any], config: Mapping[str, Any], vocab_size: int
) -> dict[str, int]:
    """Return role -> id. Tokens named in tokenizer_config.json take precedence over the ids in config.json."""
    ids: dict[str, int] = {}
    added = _added_ids(tokenizer_json)
    for role in _ROLES:
        for token_id in (_named_id(role, added, tokenizer_config), config.get(f"{role}_token_id")):
            # An id without an embedding row (some checkpoints have pad_token_id = -1) means that there is no token.
            if isinstance(token_id, int) and not isinstance(token_id, bool) and 0 <= token_id < vocab_size:
                ids.setdefault(role, token_id)
    ends = config.get("eos_token_id")
    if "eos" not in ids and isinstance(ends, list) and ends and isinstance(ends[0], int) and 0 <= ends[0] < vocab_size:
        # llama.cpp's converter ignores lists. Without the key, llama.cpp assumes that token 11 is EOS.
        ids["eos"] = ends[0]
    return ids


def _added_ids(tokenizer_json: Mapping[str, Any]) -> dict[str, int]:
    """Return text -> id of the added tokens."""
    return {entry["content"]: entry["id"] for entry in reversed(tokenizer_json.get("added_tokens") or [])}


def _named_id(role: str, added: Mapping[str, int], tokenizer_config: Mapping[str, Any]) -> int | None:
    """Return the id of the added token that tokenizer_config.json names for a role, or None."""
    named = tokenizer_config.get(f"{role}_token")
    content = named.get("content") if isinstance(named, Mapping) else named
    return added.get(content) if isinstance(content, str) else None


def _choose_eos(ids: dict[str, int], checkpoint: Path, *, named: bool) -> None:
    """Set `eos` for a tokenizer_config.json that names none: to an end of `generate`, or to the tokenizer class's."""
    ends = () if named else end_ids(checkpoint)
    if ends and ids.get("eos") not in ends:
        ids["eos"] = ends[0]
    if "eos" not in ids:
        with contextlib.suppress(DamagedFileError):  # Transformers cannot load this tokenizer
            own: int | None = load_tokenizer(checkpoint).eos_token_id
            ids |= {} if own is None else {"eos": own}


def _eot(tokenizer_json: Mapping[str, Any]) -> int | None:
    """Return the id of CodeLlama's end of a turn. llama.cpp finds it by its text, but does not know this spelling."""
    token: int | None = tokenizer_json["model"]["vocab"].get(_CODELLAMA_EOT)
    return token if is_sentencepiece_bpe(tokenizer_json) else None


def _prefix_in_transformers(checkpoint: Path) -> int | None:
    """Return Transformers' id of BOS, or of EOS if there is no BOS. The tokenizer class may define its own tokens."""
    try:
        tokenizer = load_tokenizer(checkpoint)
    except DamagedFileError:  # Transformers cannot load this tokenizer; the GGUF does not need it
        return None
    begin: int | None = tokenizer.bos_token_id
    end: int | None = tokenizer.eos_token_id
    return end if begin is None else begin


def _add_chat_templates(writer: gguf.GGUFWriter, checkpoint: Path) -> None:
    """Write the chat templates: `tokenizer.chat_template`, and one key for each named template.

    `GGUFWriter.add_chat_template` is not used: it lists the names in a random order, and changes them.

    Raises UnsafePathError for a name that a key cannot have.
    """
    check_template_names(checkpoint)
    templates = read_chat_templates(checkpoint)
    names = [name for name in templates if name != DEFAULT]
    for name in names:
        writer.add_string(gguf.Keys.Tokenizer.CHAT_TEMPLATE_N.format(name=name), templates[name])
    if names:
        writer.add_array(gguf.Keys.Tokenizer.CHAT_TEMPLATES, sorted(names))
    if DEFAULT in templates:
        writer.add_string(gguf.Keys.Tokenizer.CHAT_TEMPLATE, templates[DEFAULT])


def _add_special(writer: gguf.GGUFWriter, tokenizer: tokenizers.Tokenizer, ids: dict[str, int], where: str) -> bool:
    """Write special ids. Set add_bos and add_eos by the tokens that the tokenizer adds around a text.

    Return whether it adds BOS.
    """
    plain = tokenizer.encode(_PROBE, add_special_tokens=False).ids
    full = tokenizer.encode(_PROBE).ids
    pair = tokenizer.encode(_PROBE, _PROBE).ids
    start = _find(plain, full)
    if start is None:
        raise UnsupportedTokenizerError(f"{where}: the post_processor changes the tokens of the text")
    around = {"bos": full[:start], "eos": full[start + len(plain) :]}
    for kind, added in around.items():
        if added and (len(added) > 1 or ids.setdefault(kind, added[0]) != added[0]):
            raise UnsupportedTokenizerError(
                f"{where}: the post_processor adds the ids {added}, but llama.cpp can add only "
                f"{kind.upper()} (id {ids.get(kind)})",
                f"make tokenizer_config.json's {kind}_token and the post_processor agree",
            )
    for role in _ROLES:
        if role in ids:
            getattr(writer, f"add_{role}_token_id")(ids[role])
    writer.add_add_bos_token(bool(around["bos"]))
    writer.add_add_eos_token(bool(around["eos"]))
    # Tokens between the two texts of a pair. As in llama.cpp's converter, write the key only if there are any.
    inner = pair[len(around["bos"]) + len(plain) : len(pair) - len(around["eos"]) - len(plain)]
    if inner:
        separators = {ids[role] for role in ("sep", "eos") if role in ids}
        writer.add_add_sep_token(set(inner) <= separators and not around["eos"])
    return bool(around["bos"])


def _find(part: list[int], whole: list[int]) -> int | None:
    return next((i for i in range(len(whole) - len(part) + 1) if whole[i : i + len(part)] == part), None)
