"""Which tensors a checkpoint of a family must hold, and in which shapes: one rule for GGUF export and GGUF source."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from compact.errors import DamagedFileError, UnsupportedArchitectureError
from compact.families import Family

OUTPUT = "lm_head.weight"
# Buffers that older checkpoints carry and no layout has a place for; Transformers ignores them as well.
_BUFFER = re.compile(r"\.rotary_emb\.inv_freq$|\.masked_bias$|\.attention\.bias$")


def is_buffer(name: str) -> bool:
    """Whether a tensor of a checkpoint is no weight of the model."""
    return _BUFFER.search(name) is not None


def expected_shapes(
    family: Family, config: Mapping[str, Any], n_tensors: int, where: str
) -> dict[str, tuple[int, ...]]:
    """HF name -> row-major shape of every tensor of the layout.

    Args:
        family: the row of the family table.
        config: config.json with its sizes checked (positive integers).
        n_tensors: tensors that are really there, the bound for the number of layers.
        where: the model's path, for messages.

    Raises:
        DamagedFileError: more layers than tensors.
    """
    layers, hidden, inner = config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"]
    if layers > n_tensors:
        raise DamagedFileError(f"{where}: {layers} layers, but only {n_tensors} tensors")
    heads, head_dim = config["num_attention_heads"], family.head_dim_of(config)
    q, kv = heads * head_dim, family.kv_heads(config) * head_dim
    rows = {
        "self_attn.q_proj": (q, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, q),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    norms = {"self_attn.q_norm": (head_dim,), "self_attn.k_norm": (head_dim,)}
    biased = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"} if family.attention_bias else set()
    if family.optional_biases and config.get("attention_bias"):
        biased |= {name for name in rows if name.startswith("self_attn.")}
    if family.optional_biases and config.get("mlp_bias"):
        biased |= {name for name in rows if name.startswith("mlp.")}
    expected: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not family.tied(config):
        expected[OUTPUT] = (config["vocab_size"], hidden)
    for layer in range(layers):
        for module in family.layer:
            name = f"model.layers.{layer}.{module}"
            expected[f"{name}.weight"] = rows.get(module) or norms.get(module, (hidden,))
            if module in biased:
                expected[f"{name}.bias"] = rows[module][:1]
    return expected


def check_shapes(family: Family, config: Mapping[str, Any], stored: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Hold the tensors that are there against the layout.

    Args:
        stored: HF name -> shape. A stored output matrix is allowed where config.json ties it: where the two differ,
            Transformers uses the stored one.

    Raises:
        DamagedFileError: a tensor is missing or has another shape.
        UnsupportedArchitectureError: a tensor that has no place in a model of these sizes.
    """
    expected = expected_shapes(family, config, len(stored), where)
    missing = [name for name in expected if name not in stored]
    if missing:
        raise DamagedFileError(f"{where}: tensor {missing[0]!r} is missing ({len(missing)} in all)")
    for name, shape in stored.items():
        wanted = expected.get(name)
        if name == OUTPUT:
            wanted = expected["model.embed_tokens.weight"]
        if wanted is None:
            family.gguf_name(name)
            raise UnsupportedArchitectureError(f"{where}: tensor {name!r} has no place in a model of these sizes")
        if shape != wanted:
            raise DamagedFileError(f"{where}: tensor {name!r} has shape {list(shape)}, not {list(wanted)}")
