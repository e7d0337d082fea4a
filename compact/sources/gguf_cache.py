"""Converts a GGUF to a checkpoint, and keeps the checkpoint in the cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compact.base.cache import Cache
from compact.base.files import sha256_file, sha256_json
from compact.base.progress import Progress
from compact.checkpoints.gguf_file import GgufFile
from compact.checkpoints.gguf_model import model_stem, read_gguf_model
from compact.sources.from_gguf import read_gguf_checkpoint

# Raised when what the GGUF source writes changes, so that older cache entries are not used.
_VERSION = 4
_MARKER = "dequantised_from"


@dataclass(frozen=True)
class GgufCheckpoint:
    """A checkpoint made from a GGUF.

    Attributes:
        directory: the checkpoint in the cache.
        name: name of the model.
        note: one line for the user about dequantised weights and `--pre`, or None.
    """

    directory: Path
    name: str
    note: str | None


def gguf_checkpoint(path: Path, cache: Cache, progress: Progress, pre: str | None) -> GgufCheckpoint:
    """Return the checkpoint made from a GGUF. For a split GGUF, `path` is any of its parts.

    Args:
        path: the file. It may have any name.
        cache: where the checkpoint is kept.
        progress: shows the work.
        pre: the name that the user gave with `--pre`, or None for the file's own.

    Raises:
        CompactEdgeError: as `compact.sources.from_gguf.read_gguf_checkpoint`.
    """
    head = read_gguf_model(path)  # refuse what is not a model before gigabytes are hashed
    digests = [sha256_file(file) for file in head.files]
    key: dict[str, Any] = {"gguf": digests[0] if len(digests) == 1 else digests, "version": _VERSION}
    if pre is not None:
        key["pre"] = pre

    def make(work: Path) -> None:
        info = read_gguf_checkpoint(path, work, progress, pre=pre)
        if info.dequantised_from:
            (work / _MARKER).write_text(", ".join(info.dequantised_from), encoding="utf-8")

    size = sum(file.stat().st_size for file in head.files)
    directory = cache.get_or_make("gguf-source", sha256_json(key), make, needed_bytes=5 * size)
    notes = []
    if pre is not None and (own := head.values.get("tokenizer.ggml.pre")) != pre:
        named = "names none" if own is None else f"names {str(own)[:60]!r}"
        notes.append(f"{head.path.name} is read with the pre-tokenizer {pre!r} (--pre); the file {named}")
    if (directory / _MARKER).is_file():
        types = (directory / _MARKER).read_text(encoding="utf-8")
        notes.append(
            f"{head.path.name} holds {types} weights; they are dequantised, so every figure starts from that quality"
        )
    return GgufCheckpoint(directory, _name(head), "; ".join(notes) or None)


def _name(head: GgufFile) -> str:
    """Return the name of the file, or `general.name` if the file does not end in `.gguf`, such as a blob of a cache."""
    own = head.values.get("general.name")
    if head.path.suffix.lower() != ".gguf" and isinstance(own, str) and own.strip():
        return own
    return model_stem(head.path)
