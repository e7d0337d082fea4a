"""safetensors read and written in pieces, so that memory does not grow with the model.

Reading: the header is validated (`compact.checkpoints.safetensors_header`), then plain file reads give rows on demand.
Memory maps are avoided: mapped pages count as the process's memory and would grow with the model.
Writing: a header of fixed size is reserved, tensors stream behind it, and the header is filled in at the end, so that a
tensor's dtype may still change while it is being written.
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

# numpy has no bfloat16: its bit pattern is carried as uint16.
NUMPY_TYPES: Mapping[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies.

    Attributes:
        name: the tensor's name.
        dtype: safetensors dtype (`F32`, `F16`, `BF16`, or another that only callers with a use for it accept).
        shape: row-major shape.
        file: the shard.
        offset: first byte inside the shard.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def read_rows(self, first: int, count: int) -> npt.NDArray[Any]:
        """Rows `first` to `first + count` (elements of a 1-D tensor) as stored, bfloat16 as uint16 bit patterns.

        Raises:
            QuantizedCheckpointError: the dtype is none of F32, F16, BF16.
            StorageError: the file cannot be read.
        """
        dtype = NUMPY_TYPES.get(self.dtype)
        if dtype is None:
            raise QuantizedCheckpointError(
                f"{self.file.name}: tensor {self.name!r} has dtype {self.dtype}",
                "float32, float16 or bfloat16 is needed",
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
                        raise DamagedFileError(f"{self.file.name}: ended while tensor {self.name!r} was read")
                    done += got
        except OSError as error:
            raise as_storage_error(error, self.file) from error
        return out

    def read(self) -> npt.NDArray[Any]:
        """The whole tensor as stored. Raises as `read_rows`."""
        return self.read_rows(0, self.shape[0]) if self.shape else self.read_rows(0, 1).reshape(())


def stored_tensors(checkpoint: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint directory, by name, in the order of the files. No weights are read.

    Raises:
        DamagedFileError: a shard breaks the format or is missing, or two shards hold one tensor.
        PickleRefusedError, UnsafePathError, StorageError: as `compact.checkpoints.shards.weight_files`.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in weight_files(checkpoint):
        for entry in read_header(file):
            if entry.name in tensors:
                raise DamagedFileError(f"{file}: tensor {entry.name!r} is in two shards")
            tensors[entry.name] = StoredTensor(entry.name, entry.dtype, entry.shape, file, entry.offset)
    return tensors


class SafetensorsWriter:
    """Writes one safetensors file tensor by tensor, a piece at a time.

    Use as a context manager: for each tensor `begin`, `write` as often as needed, `end`; a tensor can be started again
    with another dtype by `restart`. The header is written when the block ends without an exception.

    Args:
        path: the file to make (must not exist).
        names: every tensor that will come, with its shape, in the order of writing.
    """

    def __init__(self, path: Path, names: Sequence[tuple[str, tuple[int, ...]]]) -> None:
        # The longest header that can come: every dtype is at most 4 letters, every offset at most 20 digits.
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
        """Start a tensor of this dtype (`F32`, `F16`, `BF16`)."""
        assert self._open is None
        self._open = (name, dtype)
        self._start = self._end

    def restart(self, dtype: str) -> None:
        """Forget what was written of the current tensor and start it again as another dtype."""
        assert self._open is not None and self._file is not None
        self._open = (self._open[0], dtype)
        self._end = self._start
        self._file.seek(8 + self._reserved + self._start)
        self._file.truncate()

    def write(self, piece: npt.NDArray[Any]) -> None:
        """Append a piece (its bytes, row-major, little-endian)."""
        assert self._file is not None
        data = np.ascontiguousarray(piece)
        self._file.write(data.reshape(-1).view(np.uint8).data)
        self._end += data.nbytes

    def end(self) -> None:
        """Finish the current tensor; its size must fit its shape."""
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
