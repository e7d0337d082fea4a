"""Finds the GGUF that a user named for llama.cpp, and checks the pre-tokenizer that the user gave for it."""

from __future__ import annotations

from pathlib import Path

from compact.checkpoints.file_kinds import is_gguf
from compact.checkpoints.gguf_file import read_gguf
from compact.checkpoints.gguf_model import first_gguf, gguf_instead_of_checkpoint
from compact.vocabulary.pretokenizers import check_name, no_pre_tokenizer

_ENDING = ".gguf"


def named_gguf(model: str) -> Path | None:
    """Return the file that llama.cpp opens for MODEL; None if MODEL is not a GGUF.

    MODEL is a GGUF file of any name, any part of a split GGUF, or a folder with one GGUF and no other weights. A path
    that does not exist is returned if it ends in `.gguf`.

    Raises:
        CompactEdgeError: a file looks like a GGUF but is not one, is not a model, or lacks parts.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        inside = gguf_instead_of_checkpoint(path)
        return None if inside is None else first_gguf(inside)
    if path.is_file():
        return first_gguf(path) if is_gguf(path) or path.suffix.lower() == _ENDING else None
    return path if model.lower().endswith(_ENDING) else None


def pre_notes(path: Path) -> list[str]:
    """Return a note if the file does not name its pre-tokenizer, so that llama.cpp uses its default."""
    values = read_gguf(path).values if path.is_file() else {}
    pre = values.get("tokenizer.ggml.pre", "default")
    if values.get("tokenizer.ggml.model") != "gpt2" or pre != "default":
        return []
    return [f"{path.name} does not name its pre-tokenizer, so llama.cpp uses its default; name it with --pre"]


def check_pre(path: Path, pre: str) -> None:
    """Check the pre-tokenizer that llama.cpp is to use for a GGUF instead of the file's own.

    Raises:
        UsageError: llama.cpp has no such name, or the file's tokenizer has no pre-tokenizer.
        CompactEdgeError: as `read_gguf`.
    """
    check_name(pre)
    if read_gguf(path).values.get("tokenizer.ggml.model") != "gpt2":
        raise no_pre_tokenizer(pre, str(path))
