"""One safetensors file: its header, the tensors in it, and reading rows of a tensor.

A file has three parts (see "Format" in the safetensors README): the length of the header as 8 little-endian bytes, the
JSON header, and the bytes of all tensors without gaps.

The header is validated first. Rows are then read on demand with normal file reads, so that memory use does not grow
with the model. Memory maps are not used for them, because mapped pages count as memory of the process.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compact.base.errors import DamagedFileError, QuantizedCheckpointError, StorageError
from compact.base.files import as_storage_error

if TYPE_CHECKING:
    import numpy.typing as npt

# safetensors dtype name -> bytes per element, for the floating-point types of language models.
DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
# safetensors dtype name -> numpy's. numpy has no bfloat16, so its bit patterns are stored as uint16.
NUMPY_TYPES: Mapping[str, str] = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True)
class TensorRef:
    """Location of a tensor in a checkpoint.

    Attributes:
        name: name of the tensor.
        dtype: safetensors dtype name.
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
    def n_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        return n_bytes(self.dtype, self.shape)

    def read_rows(self, first: int, count: int) -> npt.NDArray[Any]:
        """Read rows `first` to `first + count - 1` as they are stored. For a 1-D tensor, a row is one element.

        Returns:
            An array [count, *shape[1:]]. bfloat16 is returned as uint16 bit patterns.

        Raises:
            QuantizedCheckpointError: the dtype is not F32, F16 or BF16.
            DamagedFileError: the file is too short.
            StorageError: the file cannot be read.
        """
        import numpy as np

        if self.dtype not in NUMPY_TYPES:
            raise QuantizedCheckpointError(
                f"{self.file.name}: tensor {self.name!r} has dtype {self.dtype}",
                "use a checkpoint in float32, float16 or bfloat16",
            )
        dtype = np.dtype(NUMPY_TYPES[self.dtype])
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


def n_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Return the number of bytes of a tensor. Raises KeyError if the dtype is not in `DTYPE_BYTES`."""
    return math.prod(shape) * DTYPE_BYTES[dtype]


def read_header(path: Path) -> list[TensorRef]:
    """Return the tensors of a safetensors file, in the order of their bytes. This does not read weights.

    Raises:
        DamagedFileError: sizes, offsets or types do not match the file, or the header is not valid JSON.
        StorageError: the file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        # `safe_open` validates the whole header against the size of the file, so the numbers below can be trusted.
        with safe_open(str(path), framework="numpy"):
            pass
        with path.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            header = json.loads(handle.read(length))
    except SafetensorError as error:
        raise DamagedFileError(f"{path}: not a valid safetensors file ({str(error)[:160]})") from error
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, struct.error) as error:
        raise DamagedFileError(f"{path}: damaged safetensors header ({str(error)[:160]})") from error
    header.pop("__metadata__", None)
    return [
        TensorRef(name, info["dtype"], tuple(info["shape"]), path, 8 + length + info["data_offsets"][0])
        for name, info in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0])
    ]


def header_block(entries: Mapping[str, Any], length: int = 0) -> bytes:
    """Return everything before the data: the length of the header, its JSON, and spaces.

    The only metadata key is `format`, which Transformers requires. With more keys, the reference implementation writes
    them in random order, so equal files would have different bytes.

    Args:
        entries: `dtype`, `shape` and `data_offsets` of each tensor, by its name.
        length: minimum number of bytes of the block. The data always starts at a multiple of 8.
    """
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}, separators=(",", ":")).encode()
    size = max(length - 8, -(-len(text) // 8) * 8)
    return struct.pack("<Q", size) + text.ljust(size)
