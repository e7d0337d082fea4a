"""Reorder value heads for GGUF, in linear attention with more value heads than key heads (Qwen3.5 4B and larger).

Transformers groups the value heads by key head: [key_heads, value heads per key head]. llama.cpp's graph repeats all
key heads as a block, so a GGUF has [value heads per key head, key_heads] (llama.cpp, `src/models/qwen35.cpp`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from compact.architectures.family import Family
from compact.architectures.layer_shapes import linear_shape

Order = npt.NDArray[np.int64]

_NAME = re.compile(r"^model\.layers\.\d+\.linear_attn\.(\w+)(?:\.weight)?$")
# Module -> (rows of queries and keys come before those of the values, a head has `value_dim` rows instead of one).
_ROWS = {
    "in_proj_qkv": (True, True),
    "conv1d": (True, True),
    "in_proj_z": (False, True),
    "in_proj_a": (False, False),
    "in_proj_b": (False, False),
    "A_log": (False, False),
    "dt_bias": (False, False),
}
_COLUMNS = "out_proj"


def value_order(family: Family, config: Mapping[str, Any], hf_name: str) -> tuple[int, Order] | None:
    """Return how a tensor is reordered for a GGUF.

    Args:
        family: the row of the family table.
        config: config.json, with its sizes checked.
        hf_name: the tensor's name in the checkpoint.

    Returns:
        The dimension to reorder, and for each index along it in the GGUF the index in the checkpoint. None if the
        tensor keeps its order.
    """
    match, shape = _NAME.match(hf_name), linear_shape(family, config)
    if match is None or shape is None or shape.key_heads == shape.value_heads:
        return None
    module = match[1]
    if module not in _ROWS and module != _COLUMNS:
        return None
    after_keys, wide = _ROWS.get(module, (False, True))
    width = shape.value_dim if wide else 1
    values = np.arange(shape.value_heads * width).reshape(shape.key_heads, -1, width).swapaxes(0, 1).reshape(-1)
    before = 2 * shape.keys if after_keys else 0  # rows of queries and keys, which keep their place
    return int(module == _COLUMNS), np.concatenate([np.arange(before), before + values])
