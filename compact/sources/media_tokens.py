"""Find and leave out tokens for images and sound that a text-only model cannot read.

A text-only model of a multimodal family, such as Gemma 3 1B, has the tokenizer of the whole family. The ids of its
tokens for images and sound begin where the embedding ends. Transformers fails on every text that contains them.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from compact.base.files import read_json_object, write_json
from compact.checkpoints.names import ADDED_TOKENS, SPECIAL_TOKENS_MAP, TOKENIZER, TOKENIZER_CONFIG
from compact.vocabulary.loading import token_text

# The settings of tokenizer_config.json that name such a token.
_KEYS = ("image_token", "audio_token", "video_token")
_ENTRIES = "added_tokens"


def media_tokens(directory: Path, rows: int) -> tuple[str, ...]:
    """Return the texts of tokens for images and sound that have no row in the embedding.

    Args:
        directory: a checkpoint.
        rows: rows of the embedding.

    Raises:
        DamagedFileError, StorageError: a file of the tokenizer cannot be read.
    """
    settings, tokenizer = directory / TOKENIZER_CONFIG, directory / TOKENIZER
    if not settings.is_file() or not tokenizer.is_file():
        return ()
    value = read_json_object(settings)
    nested = value.get("extra_special_tokens")
    places = (value, nested if isinstance(nested, dict) else {})
    named = {text for place in places for key in _KEYS if (text := token_text(place.get(key))) is not None}
    if not named:
        return ()
    entries = [entry for entry in read_json_object(tokenizer).get(_ENTRIES) or () if isinstance(entry, dict)]
    beyond = {str(e.get("content")) for e in entries if isinstance(e.get("id"), int) and e["id"] >= rows}
    return tuple(sorted(named & beyond))


def leave_out(directory: Path, texts: Collection[str]) -> None:
    """Remove tokens from the tokenizer's files in `directory`, wherever these files name them."""
    for name in (TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP, ADDED_TOKENS):
        path = directory / name
        if not path.is_file():
            continue
        value = read_json_object(path)
        if name == TOKENIZER:
            value[_ENTRIES] = _without(value[_ENTRIES], texts)
        else:
            value = _without(value, texts)
        write_json(path, value)


def _without(value: Any, texts: Collection[str]) -> Any:
    """Return a JSON value without the entries that are, or are named as, one of the tokens."""
    if isinstance(value, dict):
        kept = {key: part for key, part in value.items() if key not in texts and token_text(part) not in texts}
        return {key: _without(part, texts) for key, part in kept.items()}
    if isinstance(value, list):
        return [_without(part, texts) for part in value if token_text(part) not in texts]
    return value
