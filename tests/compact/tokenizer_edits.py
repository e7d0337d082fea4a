"""Edits of the tokenizer's files of a checkpoint, as training runs and other tools leave them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Edit = Callable[[Path], None]
PAD = "<filling>"  # llama.cpp knows a [PAD] by name


def edit(directory: Path, name: str, **changes: Any) -> None:
    """Change keys of a JSON file; make the file if it is missing."""
    path = directory / name
    document = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**document, **changes}), encoding="utf-8")


def truncated(directory: Path, **changes: Any) -> None:
    section = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    edit(directory, "tokenizer.json", truncation={**section, **changes})


def padded(directory: Path, **changes: Any) -> None:
    section = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_type_id": 0}
    edit(directory, "tokenizer.json", padding={**section, "pad_id": 0, "pad_token": "<|endoftext|>", **changes})


def _added_to_tokenizer_json(directory: Path) -> None:
    document = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    entry = {**document["added_tokens"][0], "id": 421, "content": PAD}
    edit(directory, "tokenizer.json", added_tokens=[*document["added_tokens"], entry])


def _in_decoder(directory: Path) -> None:
    flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    edit(directory, "tokenizer_config.json", added_tokens_decoder={"430": {"content": PAD, "special": True, **flags}})


def _in_padding(directory: Path) -> None:
    padded(directory, pad_token=PAD, pad_id=421)
    settings = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    del settings["pad_token"]
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


# Where `PAD` is named, which tokenizer.json has no token for -> (the edit, file and key that the error must name).
NAMED: dict[str, tuple[Edit, str]] = {
    "added_tokens": (_added_to_tokenizer_json, "tokenizer.json: added_tokens"),
    "padding": (_in_padding, "tokenizer.json: padding"),
    "pad_token": (lambda d: edit(d, "tokenizer_config.json", pad_token=PAD), "tokenizer_config.json: pad_token"),
    "unk_token": (lambda d: edit(d, "tokenizer_config.json", unk_token=PAD), "tokenizer_config.json: unk_token"),
    "own role": (lambda d: edit(d, "tokenizer_config.json", image_token=PAD), "tokenizer_config.json: image_token"),
    "additional_special_tokens": (
        lambda d: edit(d, "tokenizer_config.json", additional_special_tokens=[PAD]),
        "tokenizer_config.json: additional_special_tokens",
    ),
    "extra_special_tokens": (
        lambda d: edit(d, "tokenizer_config.json", extra_special_tokens={"image_token": PAD}),
        "tokenizer_config.json: extra_special_tokens",
    ),
    "added_tokens_decoder": (_in_decoder, "tokenizer_config.json: added_tokens_decoder"),
    "special_tokens_map.json": (
        lambda d: edit(d, "special_tokens_map.json", pad_token={"content": PAD, "lstrip": False}),
        "special_tokens_map.json: pad_token",
    ),
    "added_tokens.json": (lambda d: edit(d, "added_tokens.json", **{PAD: 421}), f"added_tokens.json: {PAD}"),
}
