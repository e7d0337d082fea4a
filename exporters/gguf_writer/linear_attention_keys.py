"""GGUF keys of models with linear attention (Qwen3.5), and the settings that llama.cpp's graph fixes for them.

Source: llama.cpp's `src/models/qwen35.cpp` and the rotary kernel for interleaved sections (`GGML_ROPE_TYPE_IMROPE`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gguf

from compact.architectures.family import Family
from compact.architectures.layer_shapes import LinearShape, linear_shape
from compact.base.errors import DamagedFileError, UnsupportedArchitectureError

# Rotary pairs of a head per image axis. Transformers uses these values if the key is missing.
_SECTIONS = [11, 11, 10]
# llama.cpp assumes full attention in every 4th layer if the GGUF does not list the layers.
_INTERVAL = 4
# Transformers normalises queries and keys of linear attention with this; llama.cpp uses rms_norm_eps.
_L2_EPSILON = 1e-6


def check_linear(family: Family, config: Mapping[str, Any], where: str) -> LinearShape:
    """Check the linear attention against llama.cpp's graph. Return its sizes.

    Raises:
        UnsupportedArchitectureError: the graph does not support a size or setting.
    """
    shape = linear_shape(family, config)
    assert shape is not None
    if shape.key_dim != shape.value_dim:
        raise UnsupportedArchitectureError(
            f"{where}: linear_key_head_dim {shape.key_dim} and linear_value_head_dim {shape.value_dim} differ, but "
            "llama.cpp uses one size for both"
        )
    if shape.value_heads % shape.key_heads:
        raise UnsupportedArchitectureError(
            f"{where}: linear attention has {shape.value_heads} value heads, which is not a multiple of its "
            f"{shape.key_heads} key heads"
        )
    if config.get("attn_output_gate") is False:
        raise UnsupportedArchitectureError(
            f"{where}: attn_output_gate = false is not supported: llama.cpp always applies the gate"
        )
    epsilon = config.get("rms_norm_eps", _L2_EPSILON)
    if epsilon != _L2_EPSILON:
        raise UnsupportedArchitectureError(
            f"{where}: rms_norm_eps {epsilon!r} is not supported: llama.cpp uses it to normalise queries and keys of "
            f"linear attention, but Transformers uses {_L2_EPSILON}"
        )
    return shape


def add_linear(writer: gguf.GGUFWriter, family: Family, config: Mapping[str, Any], rotated: int) -> None:
    """Write the keys. `rotated` is the number of elements of a head that have rotary positions."""
    shape = linear_shape(family, config)
    assert shape is not None
    writer.add_ssm_conv_kernel(shape.kernel)
    writer.add_ssm_state_size(shape.key_dim)
    writer.add_ssm_group_count(shape.key_heads)
    writer.add_ssm_time_step_rank(shape.value_heads)
    writer.add_ssm_inner_size(shape.values)
    linear = family.linear_layers(config) or []
    writer.add_array(f"{family.gguf_arch}.attention.recurrent_layers", linear)
    writer.add_uint32(f"{family.gguf_arch}.full_attention_interval", config.get("full_attention_interval") or _INTERVAL)
    writer.add_rope_dimension_count(rotated)
    writer.add_rope_dimension_sections([*_sections(config, rotated), 0])


def _sections(config: Mapping[str, Any], rotated: int) -> list[int]:
    """Return the number of rotary pairs per axis [3]. In text, the position is the same on all three axes.

    Raises:
        DamagedFileError: mrope_section is not a list of three sizes.
        UnsupportedArchitectureError: a pair would use llama.cpp's fourth axis, which has no positions for text.
    """
    parts = config.get("rope_parameters") or config.get("rope_scaling") or {}
    sections = parts.get("mrope_section", _SECTIONS)
    if (
        not isinstance(sections, list)
        or len(sections) != 3
        or not all(isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 1 << 16 for size in sections)
    ):
        raise DamagedFileError(f"config.json: mrope_section = {str(sections)[:60]} is not a list of three sizes")
    total = sum(sections)
    # Pair n uses axis n modulo 3 while that axis has pairs left (ggml, `ggml_mrope_cache_init`).
    if not total or any(n >= 3 * sections[n % 3] for n in range(min(total, rotated // 2))):
        raise UnsupportedArchitectureError(
            f"config.json: mrope_section {sections} is not supported: llama.cpp would give some of the "
            f"{rotated // 2} rotary pairs no position in a text"
        )
    return sections
