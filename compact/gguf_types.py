"""Storage types of GGUF tensors: those of the `gguf` package, and what llama.cpp has that the package lacks.

The release of `gguf` trails llama.cpp: 0.19 has no number for Q2_0 and cannot dequantise Q1_0. Layouts are those of
`block_q1_0` and `block_q2_0` in ggml's ggml-common.h (the release in llama-cpp-python 0.3.36).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, TypeAlias

import gguf
import numpy as np
import numpy.typing as npt


class NewerType(IntEnum):
    """Types that the `gguf` package does not number."""

    Q2_0 = 42


TensorType: TypeAlias = "gguf.GGMLQuantizationType | NewerType"

# Type -> (weights of a block, bytes of a block).
_NEWER_BLOCKS = {NewerType.Q2_0: (64, 18)}


def tensor_type(number: int) -> TensorType:
    """The type that a file's tensor table names. Raises ValueError for an unknown one."""
    try:
        return gguf.GGMLQuantizationType(number)
    except ValueError:
        return NewerType(number)


def block_of(kind: TensorType) -> tuple[int, int]:
    """(weights, bytes) of a block. Raises KeyError for a type that has none (removed ones)."""
    if isinstance(kind, NewerType):
        return _NEWER_BLOCKS[kind]
    weights, size = gguf.GGML_QUANT_SIZES[kind]
    return int(weights), int(size)


def dequantize(data: npt.NDArray[Any], kind: TensorType) -> npt.NDArray[np.float32]:
    """Values of raw rows.

    Args:
        data: uint8 [rows, bytes of a row].
        kind: their type.

    Returns:
        float32 [rows, row].

    Raises:
        NotImplementedError: a type that cannot be dequantised here.
    """
    if kind.name in ("Q1_0", "Q2_0"):
        return _low_bit(data, block_of(kind)[1], bits=1 if kind.name == "Q1_0" else 2)
    values: npt.NDArray[np.float32] = gguf.dequantize(data, kind)
    return values


def _low_bit(data: npt.NDArray[Any], block_bytes: int, bits: int) -> npt.NDArray[np.float32]:
    """Blocks of a float16 scale and packed weights, the lowest bits first: a bit is -1 or 1, two bits are -1 to 2."""
    blocks = np.ascontiguousarray(data).reshape(-1, block_bytes)
    scale = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    packed = (blocks[:, 2:, None] >> shifts) & np.uint8((1 << bits) - 1)
    levels = packed.reshape(len(blocks), -1).astype(np.float32)
    signed = 2 * levels - 1 if bits == 1 else levels - 1
    values: npt.NDArray[np.float32] = (signed * scale).reshape(len(data), -1)
    return values
