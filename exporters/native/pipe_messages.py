"""Messages between a parent and its native child: a JSON header and raw arrays, both with explicit lengths.

Layout of a frame (little-endian): u32 length of the header, the header (UTF-8 JSON), then the bytes of each array in C
order. `header["arrays"]` has the `dtype` and `shape` of each array. Frames hold only numbers and text, never pickle.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_LENGTH = struct.Struct("<I")
_ALLOWED = frozenset({"|u1", "<i4", "<i8", "<f4", "<f8"})


class TornFrameError(Exception):
    """Raised when the stream ends inside a frame because the other process has ended."""


def write_frame(stream: IO[bytes], header: Mapping[str, Any], arrays: Sequence[Array] = ()) -> None:
    """Write one frame and flush.

    Args:
        stream: binary stream.
        header: JSON values. This function adds the key `arrays`.
        arrays: arrays of any shape, of type uint8, int32, int64, float32 or float64.

    Raises:
        ValueError: an array has another type.
        OSError: the other side closed the pipe.
    """
    packed = [np.ascontiguousarray(array) for array in arrays]
    for array in packed:
        if array.dtype.str not in _ALLOWED:
            raise ValueError(f"array type {array.dtype.str} cannot be sent")
    shapes = [{"dtype": array.dtype.str, "shape": list(array.shape)} for array in packed]
    text = json.dumps({**header, "arrays": shapes}).encode("ascii")
    stream.write(_LENGTH.pack(len(text)) + text)
    for array in packed:
        # A zero-size array has no bytes, and memoryview.cast refuses its shape.
        if array.size:
            stream.write(array.data.cast("B"))
    stream.flush()


def read_frame(stream: IO[bytes]) -> tuple[dict[str, Any], list[Array]] | None:
    """Read one frame. Return None if the stream ends between frames.

    Returns:
        The header without `arrays`, and the arrays (read-only).

    Raises:
        TornFrameError: the stream ended inside the frame.
        ValueError: the header is not a JSON object, or names an unknown array type.
    """
    prefix = stream.read(_LENGTH.size)
    if not prefix:
        return None
    if len(prefix) < _LENGTH.size:
        raise TornFrameError
    header = json.loads(_exactly(stream, _LENGTH.unpack(prefix)[0]))
    arrays: list[Array] = []
    for entry in header.pop("arrays"):
        if entry["dtype"] not in _ALLOWED:
            raise ValueError(f"array type {entry['dtype']!r} is not known")
        dtype = np.dtype(entry["dtype"])
        count = int(np.prod(entry["shape"], dtype=np.int64))
        arrays.append(np.frombuffer(_exactly(stream, count * dtype.itemsize), dtype=dtype).reshape(entry["shape"]))
    return header, arrays


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size) if size else b""
    if len(data) < size:
        raise TornFrameError
    return data
