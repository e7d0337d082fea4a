"""Read and write safetensors files in pieces, so that memory use does not grow with the model.

Reading: the header is validated first (`compact.checkpoints.safetensors_header`). Rows are then read on demand with
normal file reads. Memory maps are not used, because mapped pages count as memory of the process.

Writing: space for the header is reserved at the start of the file, and the tensors are written after it. The header is
filled in at the end, so the dtype of a tensor can still change while it is being written.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from compact.base.errors import DamagedFileError, QuantizedCheckpointError
from compact.base.files import as_storage_error
from compact.checkpoints.safetensors_header import header_json, read_header
from compact.checkpoints.shards import weight_files

# numpy has no bfloat16, so its bit patterns are stored as uint16.
NUMPY_TYPES: Mapping[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}


@dataclass(frozen=True)
class StoredTensor:
    """Location of a tensor in a checkpoint, with its position in the file.

    Attributes:
        name: name of the tensor.
        dtype: safetensors dtype. `read_rows` only accepts `F32`, `F16` and `BF16`.
        shape: row-major shape.
        file: the shard.
        offset: position of the first byte in the shard.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    def read_rows(self, first: int, count: int) -> npt.NDArray[Any]:
        """Read rows `first` to `first + count - 1` as they are stored. For a 1-D tensor, a row is one element.

        Returns:
            An array [count, *shape[1:]]. bfloat16 is returned as uint16 bit patterns.

        Raises:
            QuantizedCheckpointError: the dtype is not F32, F16 or BF16.
            DamagedFileError: the file is too short.
            StorageError: the file cannot be read.
        """
        dtype = NUMPY_TYPES.get(self.dtype)
        if dtype is None:
            raise QuantizedCheckpointError(
                f"{self.file.name}: tensor {self.name!r} has dtype {self.dtype}",
                "use a checkpoint in float32, float16 or bfloat16",
            )
        row = math.prod(self.shape[1:])
        out = np.empty((count, *self.shape[1:]), dtype=dtype)
        try:
            with self.file.open("rb", buffering=0) as handle:
                handle.seek(self.offset + first * row * dtype.itemsize)
                view = out.reshape(-1).view(np.uint8).data
                done = 0
                while done < len(view):
                    got = handle.readinto(view[done:])
                    if not got:
                        raise DamagedFileError(f"{self.file.name}: the file ends in the middle of tensor {self.name!r}")
                    done += got
        except OSError as error:
            raise as_storage_error(error, self.file) from error
        return out

    def read(self) -> npt.NDArray[Any]:
        """Read the whole tensor as it is stored. Raises the errors of `read_rows`."""
        return self.read_rows(0, self.shape[0]) if self.shape else self.read_rows(0, 1).reshape(())


def stored_tensors(checkpoint: Path) -> dict[str, StoredTensor]:
    """Return every tensor of a checkpoint directory by name, in the order of the files. This does not read weights.

    Raises:
        DamagedFileError: a shard is damaged or missing, or two shards contain the same tensor.
        PickleRefusedError, UnsafePathError: an error of `compact.checkpoints.shards.weight_files`.
        StorageError: a shard cannot be read.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in weight_files(checkpoint):
        for entry in read_header(file):
            if entry.name in tensors:
                raise DamagedFileError(f"{file}: tensor {entry.name!r} is in two shards")
            tensors[entry.name] = StoredTensor(entry.name, entry.dtype, entry.shape, file, entry.offset)
    return tensors


class SafetensorsWriter:
    """Writes one safetensors file, tensor by tensor and piece by piece. Use it as a context manager.

    For each tensor, call `begin`, then `write` once per piece, then `end`. `restart` discards the current tensor and
    starts it again with another dtype. The header is written when the block ends without an exception.

    Args:
        path: the file to write. It must not exist yet.
        names: name and shape of every tensor that will be written, in this order.
    """

    def __init__(self, path: Path, names: Sequence[tuple[str, tuple[int, ...]]]) -> None:
        # Reserve space for the longest possible header. A dtype has at most 4 letters, and an offset at most 20 digits.
        worst = {name: {"dtype": "BF16", "shape": shape, "data_offsets": [10**19, 10**19]} for name, shape in names}
        self._reserved = -(-len(header_json(worst)) // 8) * 8
        self._expected = dict(names)
        self._entries: dict[str, dict[str, Any]] = {}
        self._start = 0
        self._end = 0
        self._path = path
        self._open: tuple[str, str] | None = None
        self._file: BinaryIO | None = None

    def __enter__(self) -> SafetensorsWriter:
        self._file = self._path.open("xb")
        self._file.write(struct.pack("<Q", self._reserved) + b" " * self._reserved)
        return self

    def begin(self, name: str, dtype: str) -> None:
        """Start a tensor with a dtype (`F32`, `F16` or `BF16`)."""
        assert self._open is None
        self._open = (name, dtype)
        self._start = self._end

    def restart(self, dtype: str) -> None:
        """Discard the written part of the current tensor, and start it again with another dtype."""
        assert self._open is not None and self._file is not None
        self._open = (self._open[0], dtype)
        self._end = self._start
        self._file.seek(8 + self._reserved + self._start)
        self._file.truncate()

    def write(self, piece: npt.NDArray[Any]) -> None:
        """Append the bytes of a piece of the current tensor, in row-major order and little-endian."""
        assert self._file is not None
        data = np.ascontiguousarray(piece)
        self._file.write(data.reshape(-1).view(np.uint8).data)
        self._end += data.nbytes

    def end(self) -> None:
        """Finish the current tensor. The number of bytes written must match its shape."""
        assert self._open is not None
        name, dtype = self._open
        shape = self._expected[name]
        assert self._end - self._start == math.prod(shape) * NUMPY_TYPES[dtype].itemsize, name
        self._entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [self._start, self._end]}
        self._open = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        with self._file:
            if kind is None:
                assert set(self._entries) == set(self._expected)
                self._file.seek(8)
                self._file.write(header_json(self._entries).ljust(self._reserved))
