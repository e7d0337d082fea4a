"""Storage types of GGUF tensors: those of the `gguf` package, and newer ones of llama.cpp.

The `gguf` package lags behind llama.cpp: 0.19 does not know Q2_0 and cannot dequantise Q1_0. The layouts here are
those of `block_q1_0` and `block_q2_0` in ggml's ggml-common.h (the release in llama-cpp-python 0.3.36).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, TypeAlias

import gguf
import numpy as np
import numpy.typing as npt


class NewerType(IntEnum):
    """Types that the `gguf` package does not know."""

    Q2_0 = 42


TensorType: TypeAlias = "gguf.GGMLQuantizationType | NewerType"

# Type -> (weights per block, bytes per block).
_NEWER_BLOCKS = {NewerType.Q2_0: (64, 18)}

# Number -> (name, the plain type) of types that llama.cpp removed. Those of four parts are types repacked for one kind
# of CPU; llama.cpp now repacks when it loads the plain type.
REMOVED_TYPES = {
    4: ("Q4_2", "Q4_0"),
    5: ("Q4_3", "Q4_1"),
    31: ("Q4_0_4_4", "Q4_0"),
    32: ("Q4_0_4_8", "Q4_0"),
    33: ("Q4_0_8_8", "Q4_0"),
    36: ("IQ4_NL_4_4", "IQ4_NL"),
    37: ("IQ4_NL_4_8", "IQ4_NL"),
    38: ("IQ4_NL_8_8", "IQ4_NL"),
}


def tensor_type(number: int) -> TensorType:
    """Return the type with this number in a tensor table. Raises ValueError for an unknown number."""
    try:
        return gguf.GGMLQuantizationType(number)
    except ValueError:
        return NewerType(number)


def block_of(kind: TensorType) -> tuple[int, int]:
    """Return (weights per block, bytes per block). Raises KeyError for types that llama.cpp removed."""
    if isinstance(kind, NewerType):
        return _NEWER_BLOCKS[kind]
    weights, size = gguf.GGML_QUANT_SIZES[kind]
    return int(weights), int(size)


def dequantize(data: npt.NDArray[Any], kind: TensorType) -> npt.NDArray[np.float32]:
    """Dequantise raw rows.

    Args:
        data: uint8 [rows, bytes per row].
        kind: the type of the data.

    Returns:
        float32 [rows, weights per row].

    Raises:
        NotImplementedError: there is no dequantiser for the type.
    """
    if kind.name in ("Q1_0", "Q2_0"):
        return _low_bit(data, block_of(kind)[1], bits=1 if kind.name == "Q1_0" else 2)
    values: npt.NDArray[np.float32] = gguf.dequantize(data, kind)
    return values


def _low_bit(data: npt.NDArray[Any], block_bytes: int, bits: int) -> npt.NDArray[np.float32]:
    """Dequantise blocks of a float16 scale and packed weights, lowest bits first.

    One bit encodes -1 or 1. Two bits encode -1, 0, 1 or 2.
    """
    blocks = np.ascontiguousarray(data).reshape(-1, block_bytes)  # [blocks, block_bytes]
    scale = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)  # [blocks, 1]
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    packed = (blocks[:, 2:, None] >> shifts) & np.uint8((1 << bits) - 1)
    levels = packed.reshape(len(blocks), -1).astype(np.float32)  # [blocks, weights per block]
    signed = 2 * levels - 1 if bits == 1 else levels - 1
    values: npt.NDArray[np.float32] = (signed * scale).reshape(len(data), -1)
    return values
