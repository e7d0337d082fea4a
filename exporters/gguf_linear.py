"""The keys of a GGUF with linear attention (Qwen3.5), and what llama.cpp's graph has built in for it.

From llama.cpp's `src/models/qwen35.cpp` and the rotary kernel for interleaved sections (`GGML_ROPE_TYPE_IMROPE`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gguf

from compact.errors import DamagedFileError, UnsupportedArchitectureError
from compact.family import Family
from compact.layer_shapes import LinearShape, linear_shape

# Of the rotary pairs of a head, how many follow each axis of an image; what Transformers takes without the key.
_SECTIONS = [11, 11, 10]
# What llama.cpp takes for how often a layer attends, where the GGUF names no layers.
_INTERVAL = 4
# Transformers normalises queries and keys of linear attention with this; llama.cpp with the norms' own epsilon.
_L2_EPSILON = 1e-6


def check_linear(family: Family, config: Mapping[str, Any], where: str) -> LinearShape:
    """Hold the linear attention against llama.cpp's graph; return its sizes.

    Raises:
        UnsupportedArchitectureError: sizes that the graph does not have.
    """
    shape = linear_shape(family, config)
    assert shape is not None
    if shape.key_dim != shape.value_dim:
        raise UnsupportedArchitectureError(
            f"{where}: linear_key_head_dim {shape.key_dim} and linear_value_head_dim {shape.value_dim} differ, and "
            "llama.cpp has one size for both"
        )
    if shape.value_heads % shape.key_heads:
        raise UnsupportedArchitectureError(
            f"{where}: {shape.value_heads} value heads of linear attention are no multiple of its {shape.key_heads} "
            "key heads"
        )
    if config.get("attn_output_gate") is False:
        raise UnsupportedArchitectureError(f"{where}: attn_output_gate = false cannot be kept: llama.cpp has the gate")
    epsilon = config.get("rms_norm_eps", _L2_EPSILON)
    if epsilon != _L2_EPSILON:
        raise UnsupportedArchitectureError(
            f"{where}: rms_norm_eps {epsilon!r} cannot be kept: llama.cpp normalises queries and keys of linear "
            f"attention with it, Transformers with {_L2_EPSILON}"
        )
    return shape


def add_linear(writer: gguf.GGUFWriter, family: Family, config: Mapping[str, Any], rotated: int) -> None:
    """Write the keys; `rotated` is how much of a head has rotary positions."""
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
    """How the rotary pairs follow the three axes; a text has one position on all of them.

    Raises:
        DamagedFileError: not three sizes.
        UnsupportedArchitectureError: a pair would follow llama.cpp's fourth axis, on which texts have no position.
    """
    parts = config.get("rope_parameters") or config.get("rope_scaling") or {}
    sections = parts.get("mrope_section", _SECTIONS)
    if (
        not isinstance(sections, list)
        or len(sections) != 3
        or not all(isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 1 << 16 for size in sections)
    ):
        raise DamagedFileError(f"config.json: mrope_section = {str(sections)[:60]} is not three sizes")
    total = sum(sections)
    # Pair n follows axis n modulo 3 as long as that axis has sections left (ggml, `ggml_mrope_cache_init`).
    if not total or any(n >= 3 * sections[n % 3] for n in range(min(total, rotated // 2))):
        raise UnsupportedArchitectureError(
            f"config.json: mrope_section {sections} cannot be kept: llama.cpp gives some of {rotated // 2} rotary "
            "pairs no position in a text"
        )
    return sections
