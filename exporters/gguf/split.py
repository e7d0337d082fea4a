"""Splits a GGUF into parts of limited size, like llama.cpp's `llama-gguf-split --split-max-size` (tools/gguf-split).

The parts are named `<stem>-00001-of-0000N.gguf`. llama.cpp opens the first part and finds the others in the same
directory. The first part holds all key-values. Every part has `split.no`, `split.count` and `split.tensors.count`.
The tensors keep their order. The bytes equal those of llama.cpp's tool.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import gguf

from compact.base.errors import DamagedFileError, GateError, UsageError
from compact.base.files import CHUNK, as_storage_error
from compact.checkpoints.gguf_file import VALUES_START, GgufFile, GgufTensor, read_gguf

# Bytes of a part at least, as in llama.cpp's tool.
LEAST_PART = 1_000_000
_ALIGNMENT = gguf.GGUF_DEFAULT_ALIGNMENT
_UINT16, _INT32 = 2, 5  # types of values, GGUF spec "File structure"
_MAX_PARTS = (1 << 16) - 1
_SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")


def plan_parts(file: GgufFile, max_bytes: int) -> list[list[GgufTensor]]:
    """Distribute the tensors over parts. A new part starts when a tensor would exceed `max_bytes`.

    As in llama.cpp, only tensors with their padding count. The key-values of the first part do not count.

    Raises:
        UsageError: one tensor is larger than `max_bytes`, or there would be more parts than the format allows.
        DamagedFileError: the file has no tensors, is already a part, or has an unusual alignment.
    """
    if not file.tensors:
        raise DamagedFileError(f"{file.path}: the file has no tensors", "export the model again")
    if any(key in file.values for key in _SPLIT_KEYS) or file.values.get("general.alignment", _ALIGNMENT) != _ALIGNMENT:
        raise DamagedFileError(
            f"{file.path}: already split, or not aligned to {_ALIGNMENT} bytes", "export the model again"
        )
    largest = max(file.tensors.values(), key=lambda tensor: tensor.n_bytes)
    least = largest.n_bytes + _padding(largest.n_bytes)
    if least > max_bytes:
        raise UsageError(
            f"--split-max-size: {max_bytes / 1e6:.0f} MB is too small, because {largest.name} alone "
            f"has {least / 1e6:.1f} MB",
            f"give at least {-(-least // 10**6)}M",
        )
    parts: list[list[GgufTensor]] = [[]]
    size = 0
    for tensor in file.tensors.values():
        padded = tensor.n_bytes + _padding(tensor.n_bytes)
        if size + padded > max_bytes:
            parts.append([])
            size = 0
        parts[-1].append(tensor)
        size += padded
    if len(parts) > _MAX_PARTS:
        raise UsageError(
            f"--split-max-size: needs {len(parts)} parts, but at most {_MAX_PARTS} are possible", "give a larger size"
        )
    return parts


def part_names(stem: str, count: int) -> list[str]:
    """Return the names of the parts, as llama.cpp's `llama_split_path` forms them."""
    return [f"{stem}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]


def split_gguf(source: Path, directory: Path, max_bytes: int) -> list[Path]:
    """Write the parts of a GGUF and check them against the whole file.

    Args:
        source: the whole file.
        directory: target directory. The caller publishes it after this returns.
        max_bytes: maximum bytes of tensors in a part.

    Returns:
        Paths of the parts in order. Empty if one part is enough; nothing is written then.

    Raises:
        UsageError, DamagedFileError: as in `plan_parts` and `read_gguf`.
        GateError: the parts differ from the whole file.
        StorageError: a part cannot be written.
    """
    file = read_gguf(source)
    parts = plan_parts(file, max_bytes)
    if len(parts) == 1:
        return []
    paths = [directory / name for name in part_names(source.stem, len(parts))]
    for number, (path, tensors) in enumerate(zip(paths, parts, strict=True)):
        try:
            with source.open("rb") as read, path.open("wb") as write:
                _write_part(file, tensors, number, len(parts), read, write)
        except OSError as error:
            raise as_storage_error(error, path) from error
    check_parts(source, paths)
    return paths


def check_parts(source: Path, parts: Sequence[Path]) -> None:
    """Read the parts back and compare every key and every byte of every tensor with the whole file.

    Raises:
        GateError: a part differs from the whole file.
        DamagedFileError, StorageError: a part cannot be read.
    """
    whole = read_gguf(source)
    seen: list[str] = []
    for number, path in enumerate(parts):
        part = read_gguf(path)
        stored = {key: value for key, value in part.values.items() if key not in _SPLIT_KEYS}
        marks = tuple(part.values.get(key) for key in _SPLIT_KEYS)
        if stored != (whole.values if number == 0 else {}) or marks != (number, len(parts), len(whole.tensors)):
            raise GateError(f"{path.name}: the keys differ from those of {source.name}", "check the disk")
        for tensor in part.tensors.values():
            original = whole.tensors.get(tensor.name)
            alike = original is not None and (tensor.shape, tensor.qtype) == (original.shape, original.qtype)
            if original is None or not alike or not _equal_bytes(source, original, path, tensor):
                raise GateError(f"{path.name}: {tensor.name} differs from that of {source.name}", "check the disk")
            seen.append(tensor.name)
    if seen != list(whole.tensors):
        raise GateError(f"{source.name}: the parts do not have all tensors in order", "check the disk")


def _padding(size: int) -> int:
    return -size % int(_ALIGNMENT)


def _write_part(
    file: GgufFile, tensors: Sequence[GgufTensor], number: int, count: int, read: IO[bytes], write: IO[bytes]
) -> None:
    read.seek(VALUES_START)
    values = read.read(file.values_end - VALUES_START) if number == 0 else b""
    n_values = (len(file.values) if number == 0 else 0) + len(_SPLIT_KEYS)
    # llama.cpp writes the keys in this order.
    marks = (
        _value("split.no", _UINT16, struct.pack("<H", number)),
        _value("split.tensors.count", _INT32, struct.pack("<i", len(file.tensors))),
        _value("split.count", _UINT16, struct.pack("<H", count)),
    )
    head = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), n_values), values, *marks]
    offset = 0
    for tensor in tensors:
        head.append(_text(tensor.name) + struct.pack("<I", len(tensor.shape)))
        head.append(struct.pack(f"<{len(tensor.shape)}Q", *reversed(tensor.shape)))
        head.append(struct.pack("<IQ", int(tensor.qtype), offset))
        offset += tensor.n_bytes + _padding(tensor.n_bytes)
    for piece in head:
        write.write(piece)
    write.write(bytes(_padding(write.tell())))
    for tensor in tensors:
        read.seek(tensor.offset)
        left = tensor.n_bytes
        while left:
            block = read.read(min(CHUNK, left))
            if not block:
                raise DamagedFileError(
                    f"{file.path}: the file ends inside tensor {tensor.name!r}", "export the model again"
                )
            write.write(block)
            left -= len(block)
        write.write(bytes(_padding(tensor.n_bytes)))


def _text(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _value(key: str, kind: int, raw: bytes) -> bytes:
    return _text(key) + struct.pack("<I", kind) + raw


def _equal_bytes(first: Path, left: GgufTensor, second: Path, right: GgufTensor) -> bool:
    with first.open("rb") as one, second.open("rb") as other:
        one.seek(left.offset)
        other.seek(right.offset)
        size = left.n_bytes
        while size:
            block = one.read(min(CHUNK, size))
            if not block or block != other.read(len(block)):
                return False
            size -= len(block)
    return left.n_bytes == right.n_bytes
