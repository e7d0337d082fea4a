"""Loads the tokenizer of a checkpoint as Transformers does.

`AutoTokenizer` does not always give what tokenizer.json says. The class of the tokenizer can bring its own normalizer
and pre-tokenizer (`GPT2Tokenizer`, `Qwen2Tokenizer`). If another file names a token that tokenizer.json lacks
(tokenizer_config.json, special_tokens_map.json, added_tokens.json), Transformers adds it with the next free id. People
use the model with `AutoTokenizer`, so its tokenizer is the reference. `tokenizer_document` returns it in the form of
tokenizer.json.

The sections `truncation` and `padding` of tokenizer.json are left over from a training run. Transformers truncates and
pads a text only if a call asks for it, so the tokenizers here never do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from compact.base.errors import DamagedFileError, UnsupportedTokenizerError
from compact.base.files import read_json, read_json_object, sha256_file, sha256_json
from compact.checkpoints.names import (
    ADDED_TOKENS,
    CONFIG,
    SPECIAL_TOKENS_MAP,
    TOKENIZER,
    TOKENIZER_CONFIG,
    TOKENIZER_MODEL,
)
from compact.vocabulary.pretokenizers import pre_tokenizer_key
from compact.vocabulary.sentencepiece_bpe import is_sentencepiece_bpe, space_prefix
from compact.vocabulary.vocabulary import read_vocabulary

_READ = (TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP, ADDED_TOKENS, CONFIG, TOKENIZER_MODEL)
_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_MODEL_OPTIONS = (
    "dropout",
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "fuse_unk",
    "byte_fallback",
    "ignore_merges",
)
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_RESIZE = (
    "give each token a row: in Transformers, call model.resize_token_embeddings(len(tokenizer)), then save model and "
    "tokenizer"
)


def load_tokenizer(directory: Path, *, check_rows: bool = True) -> Any:
    """Load the checkpoint's tokenizer with Transformers (`AutoTokenizer`), without running code from the checkpoint.

    It never truncates or pads a text, even if its `backend_tokenizer` is called directly.

    Args:
        directory: the checkpoint.
        check_rows: check that every token has a row in the embedding.

    Raises:
        DamagedFileError: Transformers cannot load the tokenizer, or a token has no row in the embedding of config.json.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the tokenizers library raises a bare `Exception` for an invalid file
        raise DamagedFileError(
            f"{directory}: Transformers cannot load the tokenizer ({_one_line(error)})",
            f"download {TOKENIZER} and {TOKENIZER_CONFIG} again, or save the tokenizer again with Transformers",
        ) from error
    backend = getattr(tokenizer, "_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
        if check_rows:
            _check_rows(directory, tokenizer)
    return tokenizer


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _check_rows(directory: Path, tokenizer: Any) -> None:
    """Raise DamagedFileError if a token has no row in the embedding. Without a size in config.json, check nothing."""
    config = read_json_object(directory / CONFIG) if (directory / CONFIG).is_file() else {}
    rows = config.get("vocab_size")
    if not isinstance(rows, int) or isinstance(rows, bool):
        return
    backend = tokenizer.backend_tokenizer
    added = backend.get_added_tokens_decoder()
    if backend.get_vocab_size() <= rows and max(added, default=-1) < rows:
        return
    missing = {i: token for token, i in tokenizer.get_vocab().items() if i >= rows}
    if not missing:
        return
    first = min(missing, key=lambda i: (i in added, i))  # prefer a token of the vocabulary over an added token
    named = _named_in(directory, missing[first])
    file, key = named or (TOKENIZER_CONFIG, f"the class {type(tokenizer).__name__}")
    more = f" (as have {len(missing) - 1} more tokens)" if len(missing) > 1 else ""
    hint = f"{_RESIZE}; or remove the token from {file}"
    if named is None:
        hint = f"in {file}, set unk_token, eos_token and pad_token to tokens with a row, or to null; or {_RESIZE}"
    elif key == "model":
        hint = "use the tokenizer that belongs to these weights"
    raise DamagedFileError(
        f"{directory / file}: {key}: token {missing[first][:60]!r} has id {first}, but the embedding has {rows} rows"
        f"{more}",
        hint,
    )


def _named_in(directory: Path, token: str) -> tuple[str, str] | None:
    """Return the file that names a token and the key in it, or None if no file names it."""
    for file in (TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP, ADDED_TOKENS):
        if not (directory / file).is_file():
            continue
        document = read_json(directory / file)
        for key, value in document.items() if isinstance(document, dict) else ():
            if file == ADDED_TOKENS and key == token:
                return file, token
            if key == "model" and isinstance(value, dict):
                if token in (value.get("vocab") or ()):
                    return file, key
            elif key != "chat_template" and token in _texts(value):
                return file, key
    return None


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in parts for text in _texts(part)]


@dataclass(frozen=True)
class _Loaded:
    """The tokenizer that Transformers loaded, without the vocabulary and the merges, which come from tokenizer.json.

    Attributes:
        parts: normalizer, pre_tokenizer, post_processor and decoder, as tokenizer.json would have them.
        options: options of the BPE model.
        added: id -> (token, its flags) of every added token.
        pad_id: id of the padding token, or None.
        own_model: the section `model`, if the class does not take it from tokenizer.json; otherwise None.
    """

    parts: Mapping[str, Any]
    options: Mapping[str, Any]
    added: Mapping[int, tuple[str, Mapping[str, bool]]]
    pad_id: int | None
    own_model: Mapping[str, Any] | None


@lru_cache(maxsize=8)
def _loaded(directory: Path, stamp: tuple[tuple[str, int, int, int], ...], n_tokens: int) -> _Loaded:
    """Load the tokenizer and describe it.

    Args:
        directory: the checkpoint.
        stamp: sizes and times of the files. It is part of the cache key, so that changed files are read again.
        n_tokens: tokens of the BPE model in tokenizer.json.
    """
    from tokenizers.models import BPE

    del stamp
    tokenizer = load_tokenizer(directory)
    backend = tokenizer.backend_tokenizer
    kind = type(tokenizer)
    from_file = kind.model is BPE or "__init__" not in vars(kind) or kind.__name__ == "TokenizersBackend"
    own_model = None
    if not from_file or backend.get_vocab_size(with_added_tokens=False) != n_tokens:
        own_model = json.loads(backend.to_str())["model"]
    return _Loaded(
        {name: _state(getattr(backend, name)) for name in _PARTS},
        {name: getattr(backend.model, name, None) for name in _MODEL_OPTIONS},
        {
            int(i): (token.content, {flag: bool(getattr(token, flag)) for flag in _FLAGS})
            for i, token in backend.get_added_tokens_decoder().items()
        },
        tokenizer.pad_token_id,
        own_model,
    )


def _state(part: Any) -> Any:
    return None if part is None else json.loads(part.__getstate__())


def _stamp(directory: Path) -> tuple[tuple[str, int, int, int], ...]:
    files = ((name, (directory / name).stat()) for name in _READ if (directory / name).is_file())
    return tuple((name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in files)


def tokenizer_document(directory: Path) -> dict[str, Any]:
    """Return tokenizer.json as `AutoTokenizer` understands it.

    If the two agree, this is the content of the file. Otherwise the sections that Transformers replaces are replaced
    here too: `normalizer`, `pre_tokenizer`, `post_processor`, `decoder`, options of the model, and `added_tokens`.
    `truncation` is None, and `padding` names the padding token's id.

    Raises:
        DamagedFileError: the file or the tokenizer is damaged, or a token has no row in the embedding.
        UnsupportedTokenizerError: the tokenizer is not of a supported kind.
    """
    return _document(directory, read_json_object(directory / TOKENIZER))


def _document(directory: Path, raw: dict[str, Any]) -> dict[str, Any]:
    """Return `tokenizer_document` for the content of tokenizer.json, which is `raw` itself if the two agree."""
    model = raw.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
        return raw  # not BPE: the caller refuses it
    entries = raw.get("added_tokens") or []
    if not isinstance(entries, list) or not all(isinstance(e, dict) and isinstance(e.get("id"), int) for e in entries):
        return raw  # malformed: the caller refuses it
    try:
        loaded = _loaded(directory, _stamp(directory), len(model["vocab"]))
    except DamagedFileError:
        read_vocabulary(raw, 1 << 31, str(directory / TOKENIZER))  # its error is more precise
        raise
    changed = {**_without_training_state(raw, loaded), **_added(entries, loaded)}
    if not _segments_alike(raw, loaded):
        changed |= {key: loaded.parts[key] for key in ("normalizer", "pre_tokenizer", "decoder")}
        changed["model"] = {**model, **_options(model, loaded), **(loaded.own_model or {})}
    if _inserted(raw.get("post_processor")) != _inserted(loaded.parts["post_processor"]):
        changed["post_processor"] = loaded.parts["post_processor"]
    return {**raw, **changed} if changed else raw


def adds_tokens(directory: Path) -> bool:
    """Return whether added_tokens.json names a token that is not an added token of tokenizer.json.

    A token of the vocabulary that becomes an added token splits text differently.
    """
    path = directory / ADDED_TOKENS
    if not path.is_file():
        return False
    document = read_json_object(directory / TOKENIZER)
    known = {entry.get("content") for entry in document.get("added_tokens") or () if isinstance(entry, dict)}
    return not known.issuperset(read_json_object(path))


def tokenizer_key(directory: Path) -> str:
    """Return the sha256 of everything in the checkpoint that decides how text is split into tokens.

    If Transformers uses tokenizer.json unchanged, this is the sha256 of the file.
    """
    raw = read_json_object(directory / TOKENIZER)
    document = _document(directory, raw)
    return sha256_file(directory / TOKENIZER) if raw == document else sha256_json(document)


def check_written_tokenizer(directory: Path) -> None:
    """Check that Transformers uses a written tokenizer.json unchanged.

    Raises:
        DamagedFileError: it changes a section. Token ids and rows of the embedding would no longer match.
    """
    raw = read_json_object(directory / TOKENIZER)
    document = _document(directory, raw)
    for key, value in document.items():
        if value != raw.get(key):
            raise DamagedFileError(
                f"{directory / TOKENIZER}: Transformers' tokenizer class changes {key} of the pruned tokenizer",
                f"set tokenizer_class to PreTrainedTokenizerFast in {TOKENIZER_CONFIG} of the model, then prune again",
            )


def tokenizer_settings(directory: Path) -> dict[str, Any]:
    """Return tokenizer_config.json, with the special tokens of special_tokens_map.json if Transformers reads that file.

    It does so only if tokenizer_config.json has no `added_tokens_decoder`.
    """
    path, named = directory / TOKENIZER_CONFIG, directory / SPECIAL_TOKENS_MAP
    settings = read_json_object(path) if path.is_file() else {}
    if "added_tokens_decoder" in settings or not named.is_file():
        return settings
    return {**settings, **{key: value for key, value in read_json_object(named).items() if key.endswith("_token")}}


def token_text(value: Any) -> str | None:
    """Return the text of a token in a settings file: a string, or an object with the key `content`."""
    text = value.get("content") if isinstance(value, Mapping) else value
    return text if isinstance(text, str) else None


def truncation_side(directory: Path) -> dict[str, Any]:
    """Return `truncation_side` for tokenizer_config.json if tokenizer.json truncates on the left, otherwise nothing.

    A pruned tokenizer.json has no section `truncation`, so the side moves to tokenizer_config.json.
    """
    truncation = read_json_object(directory / TOKENIZER).get("truncation")
    left = isinstance(truncation, dict) and truncation.get("direction") == "Left"
    return {"truncation_side": "left"} if left else {}


def tokenizer_note(directory: Path) -> str | None:
    """Return one line for the user if the tokenizer's class replaces parts of tokenizer.json, otherwise None."""
    raw = read_json_object(directory / TOKENIZER)
    document = _document(directory, raw)
    if raw == document:
        return None
    replaced = [key for key in ("normalizer", "pre_tokenizer") if raw.get(key) != document.get(key)]
    if bool(raw["model"].get("ignore_merges")) != bool(document["model"].get("ignore_merges")):
        replaced.append("ignore_merges")
    if not replaced:
        return None
    return (
        f"{directory.name}: Transformers' tokenizer class replaces {' and '.join(replaced)} of {TOKENIZER}; pruning "
        "and export use what AutoTokenizer gives"
    )


def _without_training_state(raw: Mapping[str, Any], loaded: _Loaded) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    if raw.get("truncation") is not None:
        changed["truncation"] = None
    padding = raw.get("padding")
    if isinstance(padding, dict) and loaded.pad_id is not None and padding.get("pad_id") != loaded.pad_id:
        token = loaded.added.get(loaded.pad_id)
        changed["padding"] = {**padding, "pad_id": loaded.pad_id, **({"pad_token": token[0]} if token else {})}
    return changed


def _added(entries: Sequence[Mapping[str, Any]], loaded: _Loaded) -> dict[str, Any]:
    """Return the section `added_tokens` if it differs from what Transformers has."""
    listed = {
        entry["id"]: (entry.get("content"), {flag: bool(entry.get(flag)) for flag in _FLAGS}) for entry in entries
    }
    if listed == loaded.added:
        return {}
    return {
        "added_tokens": [{"id": i, "content": token, **flags} for i, (token, flags) in sorted(loaded.added.items())]
    }


def _options(model: Mapping[str, Any], loaded: _Loaded) -> dict[str, Any]:
    """Return the model's options that differ. None, False and an empty text mean the same."""
    return {key: value for key, value in loaded.options.items() if (value or None) != (model.get(key) or None)}


def _segments_alike(raw: Mapping[str, Any], loaded: _Loaded) -> bool:
    """Return whether tokenizer.json and Transformers split text into the same tokens.

    NFC is ignored: neither llama.cpp nor onnxruntime-genai normalizes, and a class of Transformers that normalizes adds
    NFC again. For SentencePiece-style BPE only the space before a text counts, because Transformers has several
    spellings for the same behaviour.
    """
    if loaded.own_model is not None:
        return False
    model = raw["model"]
    options = _options(model, loaded).keys() - {"fuse_unk", "unk_token"}
    given = {**raw, **loaded.parts, "model": {"type": "BPE", "vocab": model["vocab"], **loaded.options}}
    if is_sentencepiece_bpe(raw) and is_sentencepiece_bpe(given):
        try:
            return space_prefix(raw) == space_prefix(given) and not options
        except UnsupportedTokenizerError:
            return all(raw.get(key) == given.get(key) for key in ("normalizer", "pre_tokenizer"))
    return not options and pre_tokenizer_key(raw) == pre_tokenizer_key(given)


def _inserted(part: Any) -> Any:
    """Return what a post-processor inserts into one text and into a pair, in a form that can be compared."""
    if not isinstance(part, dict):
        return []
    if part.get("type") == "Sequence":
        return [entry for inner in part.get("processors") or () for entry in _inserted(inner)]
    if part.get("type") == "TemplateProcessing":
        specials = part.get("special_tokens")
        return [[specials, part.get("single"), part.get("pair")]] if specials else []
    return [] if part.get("type") == "ByteLevel" else [part]
