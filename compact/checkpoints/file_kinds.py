"""Recognises files by their first bytes, because names get lost: Ollama's blobs, caches, renamed downloads."""

from __future__ import annotations

import re
from pathlib import Path

from compact.base.errors import DamagedFileError
from compact.base.files import as_storage_error

GGUF_MAGIC = b"GGUF"
_HEAD = 512
# What an importance matrix is, and the next step.
IMATRIX = ("an importance matrix, not a model", "pass it to --imatrix, and name the model")
LFS_HEAD = b"version https://git-lfs"
# The beginnings of web pages, in lower case.
PAGE_HEADS = (b"<!doctype", b"<html", b"<?xml", b"<head")
# The beginnings of PyTorch's files: a zip archive, or a bare pickle.
PICKLE_HEADS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x04")
_AGAIN = "download the file again"
_FLOAT = "start from the Hugging Face checkpoint of this model, or use its GGUF"
# The file formats of llama.cpp before August 2023, as little-endian numbers: ggml, ggmf, ggjt.
_OLD_MODELS = (b"lmgg", b"fmgg", b"tjgg")
_OLD_ADAPTER = b"algg"
_ARCHIVES = ((b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"7z\xbc\xaf", "7z"), (b"BZh", "bzip2"))
# The first entry of an importance matrix in llama.cpp's format before GGUF, after two 32-bit numbers.
_OLD_IMATRIX = re.compile(rb".{3}\x00.{3}\x00(blk\.\d+\.|output\.weight|token_embd\.)", re.DOTALL)
# A raw piece of a file that was cut by bytes to upload it. A part of a split GGUF has another name.
_PIECE = re.compile(r"(.+\.gguf)[.-](?:part\d+of\d+|split-[a-z]+)\Z", re.IGNORECASE)


def is_gguf(path: Path) -> bool:
    """Return whether a file begins as a GGUF does. Raises StorageError if it cannot be read."""
    return path.is_file() and _head(path, len(GGUF_MAGIC)) == GGUF_MAGIC


def byte_piece_of(path: Path) -> str | None:
    """Return the name of the whole file if `path` is named like a raw piece of a GGUF, otherwise None."""
    match = _PIECE.match(path.name)
    return match.group(1) if match else None


def joining_hint(whole: str) -> str:
    """Return the next step for a raw piece of a file."""
    return f"join all pieces in order: cat {whole}* > joined.gguf"


def what_it_is(path: Path) -> tuple[str, str]:
    """Return (what it is, the next step) for a file that is not a GGUF. Raises StorageError if it cannot be read."""
    head = _head(path, _HEAD)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "the file is empty", _AGAIN
    if head.startswith(LFS_HEAD):
        return "a Git LFS pointer, not the file itself", "run git lfs pull, or download the file itself"
    if text.startswith(PAGE_HEADS):
        return "a web page, not a model", f"{_AGAIN}; for a gated model, log in with a token first (`hf auth login`)"
    if whole := byte_piece_of(path):
        return f"a raw piece of {whole}, not a part made by llama-gguf-split", joining_hint(whole)
    return _other_format(path, head, text)


def _other_format(path: Path, head: bytes, text: bytes) -> tuple[str, str]:
    if head.startswith(_OLD_MODELS):
        return "a GGML file, the format before GGUF", _FLOAT
    if head.startswith(_OLD_ADAPTER):
        return "a LoRA adapter in the format before GGUF", "merge the adapter into its model, and name the result"
    if _OLD_IMATRIX.match(head):
        return IMATRIX
    # Before pickles: the length of the header, the first 8 bytes, can look like the beginning of a pickle.
    if len(head) > 8 and head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") < 1 << 32:
        return "a safetensors file", "name the directory of the checkpoint"
    if head.startswith(PICKLE_HEADS):
        return "a PyTorch pickle or a zip file, and loading a pickle can run code", _FLOAT
    for magic, name in _ARCHIVES:
        if head.startswith(magic):
            return f"an archive ({name})", "unpack it, and name the file inside"
    if path.suffix.lower() == ".onnx":
        return "an ONNX graph", "name its folder; only eval and bench open it"
    if text.startswith((b"{", b"[")):
        return "a JSON file", "name the directory of the checkpoint"
    if not head.strip(b"\x00"):
        return "the file begins with zeros, as an unfinished download does", _AGAIN
    return "not a GGUF file (the first four bytes are not 'GGUF')", "name a checkpoint directory or a GGUF file"


def not_a_gguf(path: Path) -> DamagedFileError:
    """Return the error for a file that was expected to be a GGUF."""
    what, hint = what_it_is(path)
    return DamagedFileError(f"{path}: {what}", hint)


def _head(path: Path, count: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError as error:
        raise as_storage_error(error, path) from error
