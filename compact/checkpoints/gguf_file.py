"""Read the head of a GGUF file strictly: key-values and the tensor table (GGUF spec, "File structure").

Counts, lengths and offsets come from the file. Each is checked against the size of the file before anything is
allocated for it.

The reader of the `gguf` package is not used. It trusts lengths, so a hostile file can make it run out of memory. It
also creates Python objects for every array element, which takes seconds for a vocabulary of 150,000 tokens.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from compact.base.errors import DamagedFileError, ModelNotFoundError
from compact.base.files import as_storage_error
from compact.checkpoints.file_kinds import GGUF_MAGIC, byte_piece_of, joining_hint, not_a_gguf
from compact.checkpoints.gguf_types import REMOVED_TYPES, TensorType, block_of, tensor_type

_VERSIONS = (2, 3)
_AGAIN = "download or convert the GGUF again"
_BIG_ENDIAN = "download the little-endian file, or run gguf-convert-endian FILE little (Python package gguf)"
_VERSION_1 = "version 1 was in use for a few days of August 2023; use a newer GGUF of this model"
# Offset of the first key-value: after the magic, the version, and the counts of tensors and key-values.
VALUES_START = 4 + 4 + 8 + 8
_SCALARS: Mapping[int, str] = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_BOOL, _STRING, _ARRAY = 7, 8, 9
_MAX_DIMS = 4
_MAX_NAME = 64
_MAX_KEY = (1 << 16) - 1
# Smallest sizes in the file, in bytes. A key-value has at least a key length, a type and one byte. A tensor has at
# least a name length, a number of dimensions, a type and an offset.
_MIN_KEY_VALUE, _MIN_TENSOR = 8 + 4 + 1, 8 + 4 + 4 + 8


@dataclass(frozen=True)
class GgufTensor:
    """One row of the tensor table, checked against the file's size.

    Attributes:
        name: the tensor's name in the GGUF.
        shape: row-major shape (reversed in the file).
        qtype: GGML type.
        offset: position of the first byte in the file.
        n_bytes: size in bytes.
        part: the file that holds the tensor, if it is another part of a split GGUF; otherwise None.
    """

    name: str
    shape: tuple[int, ...]
    qtype: TensorType
    offset: int
    n_bytes: int
    part: Path | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        size = 1
        for dim in self.shape:
            size *= dim
        return size


@dataclass(frozen=True)
class GgufFile:
    """The head of a GGUF file.

    Attributes:
        path: the file, or the first part of a split GGUF.
        values: key -> value (int, float, bool, str, or a list of one kind).
        tensors: the tensor table, by name, in the file's order.
        values_end: offset of the first byte after the key-values, which begin at `VALUES_START`.
        parts: all files of a split GGUF that was joined, in order; otherwise empty.
    """

    path: Path
    values: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]
    values_end: int
    parts: tuple[Path, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """All files with tensors, the first part first."""
        return self.parts or (self.path,)

    def read_rows(self, tensor: GgufTensor, first: int, count: int) -> npt.NDArray[np.uint8]:
        """Read the raw bytes of rows `first` to `first + count` (exclusive).

        Returns:
            uint8 [count, bytes per row].

        Raises:
            DamagedFileError: the file ends too early.
            StorageError: the file cannot be read.
        """
        row = tensor.n_bytes // tensor.shape[0]
        out = np.empty((count, row), dtype=np.uint8)
        path = tensor.part or self.path
        try:
            with path.open("rb") as file:
                file.seek(tensor.offset + first * row)
                got = file.readinto(out.reshape(-1).data)
        except OSError as error:
            raise as_storage_error(error, path) from error
        if got != out.nbytes:
            raise DamagedFileError(f"{path}: the file ends inside tensor {tensor.name!r}", _AGAIN)
        return out


class _Cursor:
    """A read position in the file. Every read is checked against the bytes left."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data = data
        self._path = path
        self.at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self.at

    def fail(self, what: str, hint: str = _AGAIN) -> DamagedFileError:
        return DamagedFileError(f"{self._path}: {what} (at byte {self.at})", hint)

    def cut(self, name: str, end: int) -> DamagedFileError:
        """Return the error for a file that ends before byte `end`, where the tensor `name` ends."""
        whole = byte_piece_of(self._path)
        what = f"the file is incomplete: it has {len(self._data)} bytes, but tensor {name!r} ends at byte {end}"
        return DamagedFileError(f"{self._path}: {what}", joining_hint(whole) if whole else "download the file again")

    def take(self, count: int, what: str) -> bytes:
        if count > self.left:
            raise self.fail(f"{what} needs {count} bytes, but the file has only {self.left} left")
        start, self.at = self.at, self.at + count
        return self._data[start : self.at]

    def number(self, code: str, what: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]

    def text(self, what: str, limit: int | None = None) -> str:
        length = self.number("Q", what)
        if limit is not None and length > limit:
            raise self.fail(f"{what} has {length} bytes, but at most {limit} are allowed")
        raw = self.take(length, what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} is not UTF-8") from error


def read_gguf(path: Path) -> GgufFile:
    """Read and check the head of a GGUF file.

    Raises:
        ModelNotFoundError: the file does not exist.
        DamagedFileError: the file is not a GGUF (the message says what it is), has a version other than 2 and 3, is
            big-endian or truncated, or has a count, length, type or offset that does not fit the file.
        StorageError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(len(GGUF_MAGIC))
            if magic != GGUF_MAGIC[: len(magic)] or not magic:
                raise not_a_gguf(path)
            if os.fstat(file.fileno()).st_size < VALUES_START:
                raise DamagedFileError(f"{path}: too short for a GGUF file", _AGAIN)
            # With a memory map, only the pages of the head are read, and no read can go past the end of the file.
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read_head(_Cursor(data, path), path)
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"{path}: not found") from error
    except OSError as error:
        raise as_storage_error(error, path) from error


def _read_head(cursor: _Cursor, path: Path) -> GgufFile:
    cursor.take(len(GGUF_MAGIC), "magic")
    version = cursor.number("I", "version")
    if version not in _VERSIONS:
        if version & 0xFFFF == 0:
            raise cursor.fail("big-endian GGUF is not supported", _BIG_ENDIAN)
        raise cursor.fail(f"GGUF version {version} is not 2 or 3", _VERSION_1 if version == 1 else _AGAIN)
    n_tensors = cursor.number("Q", "tensor count")
    n_values = cursor.number("Q", "key-value count")
    if n_values * _MIN_KEY_VALUE + n_tensors * _MIN_TENSOR > cursor.left:
        raise cursor.fail(f"{n_values} key-values and {n_tensors} tensors do not fit in the file")
    values: dict[str, Any] = {}
    for _ in range(n_values):
        key = cursor.text("key", _MAX_KEY)
        if key in values:
            raise cursor.fail(f"key {key[:80]!r} appears twice")
        values[key] = _read_value(cursor, cursor.number("I", "value type"), key)
    values_end = cursor.at
    table = [_read_tensor_row(cursor) for _ in range(n_tensors)]
    alignment = values.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
    if isinstance(alignment, bool) or not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise cursor.fail(f"general.alignment = {alignment!r} is not a power of two")
    cursor.at += -cursor.at % alignment
    tensors: dict[str, GgufTensor] = {}
    for name, shape, qtype, offset in table:
        if name in tensors:
            raise cursor.fail(f"tensor {name!r} appears twice")
        tensors[name] = _checked_tensor(cursor, name, shape, qtype, offset, alignment)
    return GgufFile(path, values, tensors, values_end)


def _read_value(cursor: _Cursor, kind: int, key: str) -> Any:
    what = f"value of {key[:80]!r}"
    if kind == _STRING:
        return cursor.text(what)
    if kind == _ARRAY:
        return _read_array(cursor, what)
    code = _SCALARS.get(kind)
    if code is None:
        raise cursor.fail(f"{what} has the unknown type {kind}")
    return cursor.number(code, what)


def _read_array(cursor: _Cursor, what: str) -> list[Any]:
    kind, length = cursor.number("I", what), cursor.number("Q", what)
    if kind == _STRING:
        if length * 8 > cursor.left:
            raise cursor.fail(f"{what} has {length} strings, which do not fit in the file")
        return [cursor.text(what) for _ in range(length)]
    code = _SCALARS.get(kind)
    if code is None:
        raise cursor.fail(f"{what} is an array of the unsupported type {kind}")
    size = struct.calcsize("<" + code)
    raw = np.frombuffer(cursor.take(length * size, what), dtype=np.dtype("u1" if kind == _BOOL else f"<{code}"))
    if kind == _BOOL:
        raw = raw.astype(bool)
    values: list[Any] = raw.tolist()
    return values


def _read_tensor_row(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.text("tensor name", _MAX_NAME)
    n_dims = cursor.number("I", "tensor dimensions")
    if not 1 <= n_dims <= _MAX_DIMS:
        raise cursor.fail(f"tensor {name!r} has {n_dims} dimensions")
    dims = struct.unpack(f"<{n_dims}Q", cursor.take(8 * n_dims, "tensor shape"))
    return name, tuple(reversed(dims)), cursor.number("I", "tensor type"), cursor.number("Q", "tensor offset")


def _checked_tensor(
    cursor: _Cursor, name: str, shape: tuple[int, ...], raw_type: int, offset: int, alignment: int
) -> GgufTensor:
    try:
        qtype = tensor_type(raw_type)
        block, block_bytes = block_of(qtype)
    except (ValueError, KeyError) as error:
        if (removed := REMOVED_TYPES.get(raw_type)) is not None:
            old, plain = removed
            what = f"tensor {name!r} has the type {old}, which llama.cpp no longer reads"
            raise cursor.fail(what, f"use a file of another type, such as {plain}") from error
        what = f"tensor {name!r} has the unknown type {raw_type}"
        raise cursor.fail(what, "the file is damaged, or of a newer llama.cpp; use a file of a known type") from error
    elements = 1
    for dim in shape:
        elements *= dim
    if elements <= 0 or shape[-1] % block:
        raise cursor.fail(f"tensor {name!r} has the shape {list(shape)}, which is not valid for {qtype.name}")
    n_bytes = elements // block * block_bytes
    if offset % alignment:
        raise cursor.fail(f"tensor {name!r} starts at {offset}, which is not a multiple of {alignment}")
    if offset + n_bytes > cursor.left:
        raise cursor.cut(name, cursor.at + offset + n_bytes)
    return GgufTensor(name, shape, qtype, cursor.at + offset, n_bytes)
