"""The tensors of a GGUF: names, types, and their bytes, one piece at a time.

Types follow llama.cpp's converter. 1-D tensors and biases are F32. Matrices have the requested type, or F16 if their
row length is not a multiple of the type's block size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from compact.architectures.family import Family
from compact.architectures.layout import OUTPUT, check_shapes, is_unused
from compact.architectures.value_order import Order, value_order
from compact.base.errors import UnsupportedArchitectureError, UsageError
from compact.checkpoints.safetensors_file import TensorRef

Array = npt.NDArray[Any]
_Type = gguf.GGMLQuantizationType

# Elements converted at a time: few enough to stay in the CPU cache, many enough for numpy to be fast.
PIECE_ELEMENTS = 1 << 20
_BLOCK = 32
# llama.cpp's converter does not quantise kernels of convolutions.
_KERNEL = ".ssm_conv1d.weight"
_SMALLEST_NORMAL = np.float32(2.0**-126)


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the file to be written.

    Attributes:
        name: GGUF name.
        source: the stored tensor with the values.
        qtype: GGML type in the file.
        heads: number of heads whose rows are permuted (Llama's q and k), or None.
        offset: added to every value. Transformers stores Gemma's norms as w and computes with 1 + w.
        negative_exponent: whether the file holds -exp(x) for every value x.
        order: a dimension (0 or 1), and the source's index for each index of the file along it. None: no reordering.
    """

    name: str
    source: TensorRef
    qtype: gguf.GGMLQuantizationType
    heads: int | None
    offset: float = 0.0
    negative_exponent: bool = False
    order: tuple[int, Order] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Row-major shape in the file. Kernels of depthwise convolutions lose their dimension of size one."""
        return gguf_shape(self.source.shape)

    @property
    def n_bytes(self) -> int:
        """Size in the file in bytes, without padding."""
        block, size = gguf.GGML_QUANT_SIZES[self.qtype]
        return self.source.n_elements // int(block) * int(size)


def plan_tensors(
    family: Family, config: Mapping[str, Any], stored: Mapping[str, TensorRef], quant: str, where: str
) -> list[PlannedTensor]:
    """Plan every tensor to write and check it against the layout.

    Args:
        family: the row of the family table.
        config: config.json with checked sizes.
        stored: the checkpoint's tensors.
        quant: `F32`, `F16`, `BF16` or `Q8_0`.
        where: the checkpoint's path, for messages.

    Raises:
        UnsupportedArchitectureError: the layout does not have a tensor, or llama.cpp has no LM head in it.
        DamagedFileError: a tensor is missing, or its shape contradicts config.json.
    """
    kept = {name: tensor for name, tensor in stored.items() if not is_unused(name, family, config)}
    if not family.untied and OUTPUT in kept:
        if not _same_rows(kept[OUTPUT], kept.get("model.embed_tokens.weight")):
            raise UnsupportedArchitectureError(
                f"{where}: lm_head differs from the embedding, but a GGUF of this layout cannot hold a separate lm_head"
            )
        del kept[OUTPUT]
    check_shapes(family, config, {name: tensor.shape for name, tensor in kept.items()}, where)
    return [
        PlannedTensor(
            family.gguf_name(name),
            tensor,
            type_of(family.gguf_name(name), tensor.shape, quant),
            family.heads_to_permute(name, config),
            family.norm_shift(name),
            family.holds_exponent(name),
            value_order(family, config, name),
        )
        for name, tensor in kept.items()
    ]


def _same_rows(tensor: TensorRef, other: TensorRef | None) -> bool:
    if other is None or (tensor.shape, tensor.dtype) != (other.shape, other.dtype):
        return False
    step = max(1, PIECE_ELEMENTS // math.prod(tensor.shape[1:]))
    starts = range(0, tensor.shape[0], step)
    counts = [min(step, tensor.shape[0] - first) for first in starts]
    return all(
        np.array_equal(tensor.read_rows(first, count), other.read_rows(first, count))
        for first, count in zip(starts, counts, strict=True)
    )


def gguf_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Convert a row-major shape to that in a GGUF: [channels, 1, width] becomes [channels, width]."""
    return (shape[0], *shape[2:]) if len(shape) == 3 and shape[1] == 1 else shape


def type_of(name: str, shape: tuple[int, ...], quant: str) -> gguf.GGMLQuantizationType:
    """Return a tensor's type by GGUF name and row-major shape: F32 for vectors and kernels, F16 if rows do not fit."""
    if len(shape) == 1 or name.endswith(_KERNEL):
        return _Type.F32
    wanted = _Type[quant]
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    return wanted if shape[-1] % block == 0 else _Type.F16


def pieces(tensor: PlannedTensor) -> Iterator[Array]:
    """Yield the tensor's bytes in file order, as arrays of at most about `PIECE_ELEMENTS` elements.

    Raises:
        UsageError: a value exceeds the range of the type (65504 for float16).
        StorageError, DamagedFileError: the shard cannot be read.
    """
    source = tensor.source
    rows = source.shape[0]
    row_size = math.prod(source.shape[1:])
    unit = rows // tensor.heads if tensor.heads else 1
    step = max(1, PIECE_ELEMENTS // (unit * row_size)) * unit
    for first, count in _parts(tensor, step):
        block = source.read_rows(first, count)
        dtype = source.dtype
        if tensor.order is not None and tensor.order[0] == 1:
            block = block[:, tensor.order[1]]
        if tensor.heads:
            block = permute(block, block.shape[0] // unit)
        if tensor.offset:
            block, dtype = to_float32(block, dtype) + np.float32(tensor.offset), "F32"
        if tensor.negative_exponent:
            block, dtype = negative_exponent(to_float32(block, dtype)), "F32"
        try:
            # llama.cpp's converter would write infinities here, and the model would then compute only NaN.
            with np.errstate(over="raise", divide="ignore", invalid="ignore"):
                piece = convert(block, dtype, tensor.qtype)
        except FloatingPointError as error:
            raise UsageError(
                f"tensor {source.name!r} has values beyond the range of {tensor.qtype.name}", "export as BF16 or F32"
            ) from error
        yield piece


def _parts(tensor: PlannedTensor, step: int) -> Iterator[tuple[int, int]]:
    """Yield (first row, number of rows) of the source in file order, at most `step` rows at a time."""
    rows = tensor.source.shape[0]
    runs = [(0, rows)]
    if tensor.order is not None and tensor.order[0] == 0:
        order = tensor.order[1]
        starts = np.flatnonzero(np.diff(order, prepend=-2) != 1)
        runs = [(int(order[a]), int(b - a)) for a, b in zip(starts, [*starts[1:], len(order)], strict=True)]
    for first, count in runs:
        for at in range(first, first + count, step):
            yield at, min(step, first + count - at)


def negative_exponent(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Compute -exp(x) with torch, as llama.cpp's converter does. numpy's result differs in the last bit."""
    import torch

    return (-torch.exp(torch.from_numpy(np.ascontiguousarray(values)))).numpy()


def permute(rows: Array, heads: int) -> Array:
    """Interleave the two rotary halves of each head's rows, as llama.cpp's Llama graph reads q and k.

    Args:
        rows: array [heads * head_dim, ...].
        heads: number of heads in `rows`.

    Returns:
        Array of the same shape.
    """
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def convert(block: Array, dtype: str, qtype: gguf.GGMLQuantizationType) -> Array:
    """Convert stored values to a GGML type.

    Args:
        block: stored rows [..., row]; bfloat16 as uint16 bit patterns.
        dtype: stored type: `F32`, `F16` or `BF16`.
        qtype: F32, F16, BF16 or Q8_0.

    Returns:
        Contiguous array with the bytes of the type, row by row.
    """
    if (dtype, qtype) in (("F32", _Type.F32), ("F16", _Type.F16)):
        return block
    if dtype == "BF16" and qtype is _Type.BF16 and not _has_nan_bf16(block):
        return block
    wide = to_float32(block, dtype)
    if qtype is _Type.F32:
        return wide
    if qtype is _Type.F16:
        return wide.astype(np.float16)
    if qtype is _Type.Q8_0:
        return quantize_q8_0(wide)
    converted: Array = gguf.quants.quantize(wide, qtype)
    return converted


def to_float32(block: Array, dtype: str) -> npt.NDArray[np.float32]:
    """Convert stored rows (`F32`, `F16`, or `BF16` as uint16) exactly to float32. The shape is unchanged."""
    if dtype == "BF16":
        wide = block.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    return block.astype(np.float32, copy=False)


def _has_nan_bf16(block: Array) -> bool:
    # The reference conversion sets the quiet bit of NaN and keeps all other bits.
    return bool(((block & 0x7FFF) > 0x7F80).any())


def quantize_q8_0(values: npt.NDArray[np.float32]) -> Array:
    """Quantise float32 rows to Q8_0: blocks of a float16 scale and 32 signed bytes. Bit-exact with the reference.

    Infinities, NaN and scales below float32's normal range are converted by the reference itself.

    Args:
        values: float32 [..., row]; row is a multiple of 32.

    Returns:
        uint8, shape [blocks, 34].
    """
    blocks = values.reshape(-1, _BLOCK)  # [blocks, 32]
    scale = np.abs(blocks).max(axis=1) / np.float32(127)
    odd = ~np.isfinite(scale) | ((scale < _SMALLEST_NORMAL) & (scale != 0))
    if odd.any():
        reference: Array = gguf.quants.quantize(blocks, _Type.Q8_0)
        return reference.reshape(-1, 2 + _BLOCK)
    inverse = np.zeros_like(scale)
    np.divide(np.float32(1), scale, out=inverse, where=scale != 0)
    # Round half away from zero in integers: double the scaled value (exact), truncate, halve with a carry.
    doubled = (blocks * (inverse * np.float32(2))[:, None]).astype(np.int16)
    doubled += (doubled >> 15) + np.int16(1)
    doubled >>= 1
    out = np.empty((len(blocks), 2 + _BLOCK), dtype=np.uint8)
    out[:, :2] = scale.astype(np.float16).view(np.uint8).reshape(-1, 2)
    out[:, 2:] = doubled.astype(np.int8).view(np.uint8)
    return out
