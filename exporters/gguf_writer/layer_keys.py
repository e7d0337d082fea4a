"""GGUF keys of layouts whose layers differ (Gemma 4), and the settings that llama.cpp's graph fixes for them.

Source: llama.cpp's `src/models/gemma4.cpp`, and `llama_model::create_memory` for layers that share keys and values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gguf

from compact.architectures.family import Family
from compact.architectures.layer_shapes import LayerShape, per_layer_size, shared_kv_layers
from compact.base.errors import UnsupportedArchitectureError
from compact.sources.from_gguf_layers import LOCAL_KEY, LOCAL_ROTARY, LOCAL_VALUE, PER_LAYER, ROTARY, SHARED_KV


def check_layers(family: Family, config: Mapping[str, Any], blocks: Sequence[LayerShape], where: str) -> int:
    """Check the layers against llama.cpp's graph. Return the head dimension of the full-attention layers.

    Raises:
        UnsupportedArchitectureError: layers of one kind differ, or llama.cpp and Transformers would share the keys and
            values of different layers.
    """
    windowed = family.sliding_layers(config) or []
    for window in (True, False):
        heads = {(b.head_dim, b.kv_heads) for b, w in zip(blocks, windowed, strict=True) if w is window}
        if len(heads) > 1:
            raise UnsupportedArchitectureError(
                f"{where}: layers with one kind of attention differ in their heads, but a GGUF has one size per kind"
            )
    if any(block.head_dim % 2 for block in blocks):
        raise UnsupportedArchitectureError(
            f"{where}: the head width is odd, so rotary positions cannot split it in half"
        )
    first = len(blocks) - shared_kv_layers(family, config)
    if first < len(blocks):
        _check_sources(windowed, first, where)
    return next(block.head_dim for block, window in zip(blocks, windowed, strict=True) if not window)


def _check_sources(windowed: Sequence[bool], first: int, where: str) -> None:
    """Check which layers the shared keys and values come from.

    llama.cpp takes them from fixed layers. Transformers takes them from the last layer of the same kind.
    """
    for window in set(windowed[first:]):
        usual = first - (2 if window else 1)
        last = max((n for n in range(first) if windowed[n] is window), default=-1)
        if first < 2 or last != usual:
            kind = "sliding_attention" if window else "full_attention"
            raise UnsupportedArchitectureError(
                f"{where}: the model shares keys and values of layer {last} ({kind}), "
                f"but llama.cpp would share those of layer {usual}",
                "num_kv_shared_layers must leave a sliding_attention and a full_attention layer in front",
            )


def add_layers(writer: gguf.GGUFWriter, family: Family, config: Mapping[str, Any], head_dim: int) -> None:
    """Write the keys. `head_dim` is the head dimension of the full-attention layers."""
    local = family.head_dim_of(config)
    values = {
        SHARED_KV: shared_kv_layers(family, config),
        PER_LAYER: per_layer_size(family, config),
        LOCAL_KEY: local,
        LOCAL_VALUE: local,
        ROTARY: head_dim,
        LOCAL_ROTARY: local,
    }
    for key, value in values.items():
        writer.add_uint32(f"{family.gguf_arch}.{key}", value)
