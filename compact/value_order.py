"""The order of value heads in linear attention with more value heads than key heads (Qwen3.5 4B and larger).

Transformers keeps the value heads of a key head together: [key head, value head of it]. llama.cpp's graph repeats the
key heads as a whole, so a GGUF holds [value head of a key head, key head] (llama.cpp, `src/models/qwen35.cpp`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from compact.family import Family
from compact.layer_shapes import linear_shape

Order = npt.NDArray[np.int64]

_NAME = re.compile(r"^model\.layers\.\d+\.linear_attn\.(\w+)(?:\.weight)?$")
# By module: whether what comes before the values are queries and keys, and whether a head is as wide as its values.
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
    """How a tensor is ordered in a GGUF.

    Args:
        family: the row of the family table.
        config: config.json, its sizes checked.
        hf_name: of the tensor.

    Returns:
        The dimension, and for every index along it in the GGUF the index in the checkpoint. None for a tensor that
        keeps its order.
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
    before = 2 * shape.keys if after_keys else 0
    return int(module == _COLUMNS), np.concatenate([np.arange(before), before + values])
