"""The tensors and shapes that a checkpoint of a family must have. GGUF export and GGUF source share these rules."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from compact.architectures.family import Family
from compact.architectures.layer_shapes import LayerShape, layer_shapes, linear_shape, per_layer_size, shared_kv_layers
from compact.architectures.misfit import described, fitting_changes, named_keys
from compact.base.errors import DamagedFileError, UnsupportedArchitectureError

PER_LAYER_EMBEDDING = "model.embed_tokens_per_layer.weight"
EMBEDDING = "model.embed_tokens.weight"
OUTPUT = "lm_head.weight"
# Tensors with one row per token.
EMBEDDINGS = frozenset({EMBEDDING, OUTPUT, PER_LAYER_EMBEDDING})
# Buffers in older checkpoints. They are not part of any layout, and Transformers ignores them too.
_BUFFER = re.compile(r"\.rotary_emb\.inv_freq$|\.masked_bias$|\.attention\.bias$")


_SHARED_KV = re.compile(r"^model\.layers\.(\d+)\.self_attn\.[kv]_(?:proj|norm)\.")


def is_buffer(name: str) -> bool:
    """Return whether a tensor of a checkpoint is a buffer instead of a weight."""
    return _BUFFER.search(name) is not None


def is_unused(name: str, family: Family, config: Mapping[str, Any]) -> bool:
    """Return whether Transformers ignores a tensor of a checkpoint.

    These are buffers, key and value projections of layers that reuse those of an earlier layer, and heads that predict
    additional tokens. Published files contain all of them.
    """
    if is_buffer(name) or (family.unused is not None and name.startswith(family.unused)):
        return True
    match = _SHARED_KV.match(name) if family.shared_kv else None
    return match is not None and int(match[1]) >= int(config["num_hidden_layers"]) - shared_kv_layers(family, config)


def expected_shapes(
    family: Family, config: Mapping[str, Any], n_tensors: int, where: str
) -> dict[str, tuple[int, ...]]:
    """Return HF name -> row-major shape for every tensor of the layout.

    Args:
        family: the row of the family table.
        config: config.json with its sizes checked (positive integers).
        n_tensors: number of tensors in the checkpoint. There cannot be more layers than this.
        where: the model's path, for messages.

    Raises:
        DamagedFileError: there are more layers than tensors.
    """
    layers, hidden, vocab = config["num_hidden_layers"], config["hidden_size"], config["vocab_size"]
    if layers > n_tensors:
        raise DamagedFileError(
            f"{where}: num_hidden_layers is {layers}, but there are only {n_tensors} tensors",
            "download the checkpoint again, the weights together with config.json",
        )
    per_layer = per_layer_size(family, config)
    expected: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
    }
    if per_layer:
        expected[PER_LAYER_EMBEDDING] = (vocab, layers * per_layer)
        expected["model.per_layer_model_projection.weight"] = (layers * per_layer, hidden)
        expected["model.per_layer_projection_norm.weight"] = (per_layer,)
    if not family.tied(config):
        expected[OUTPUT] = (vocab, hidden)
    for layer, shape in enumerate(layer_shapes(family, config)):
        for name, size in _layer_tensors(family, config, shape, per_layer).items():
            expected[f"model.layers.{layer}.{name}"] = size
    return expected


def _layer_tensors(
    family: Family, config: Mapping[str, Any], shape: LayerShape, per_layer: int
) -> dict[str, tuple[int, ...]]:
    """Return name inside a layer -> shape, in the order of the family's row."""
    hidden, inner = config["hidden_size"], config["intermediate_size"] * shape.ffn_width
    q, kv = config["num_attention_heads"] * shape.head_dim, shape.kv_heads * shape.head_dim
    rows: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (2 * q if family.gated_queries else q, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, q),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "per_layer_input_gate": (per_layer, hidden),
        "per_layer_projection": (hidden, per_layer),
    }
    norms = {"self_attn.q_norm": (shape.head_dim,), "self_attn.k_norm": (shape.head_dim,)}
    bare: dict[str, tuple[int, ...]] = {"layer_scalar": (1,)}
    if (linear := linear_shape(family, config)) is not None:
        rows |= {
            "linear_attn.in_proj_qkv": (linear.channels, hidden),
            "linear_attn.in_proj_z": (linear.values, hidden),
            "linear_attn.in_proj_a": (linear.value_heads, hidden),
            "linear_attn.in_proj_b": (linear.value_heads, hidden),
            "linear_attn.conv1d": (linear.channels, 1, linear.kernel),
            "linear_attn.out_proj": (hidden, linear.values),
        }
        norms["linear_attn.norm"] = (linear.value_dim,)
        bare |= dict.fromkeys(("linear_attn.A_log", "linear_attn.dt_bias"), (linear.value_heads,))
    absent = set() if shape.own_kv else {"self_attn.k_proj", "self_attn.v_proj", "self_attn.k_norm"}
    if not shape.own_values:
        absent.add("self_attn.v_proj")
    if not per_layer:
        absent |= {name for name in family.layer if "per_layer" in name}
    other = "self_attn." if shape.linear else "linear_attn."
    absent |= {name for name in (*family.layer, *family.bare) if name.startswith(other)}
    biased = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"} if family.attention_bias else set()
    if family.optional_biases and config.get("attention_bias"):
        biased |= {name for name in rows if name.startswith("self_attn.")}
    if family.optional_biases and config.get("mlp_bias"):
        biased |= {name for name in rows if name.startswith("mlp.")}
    expected: dict[str, tuple[int, ...]] = {}
    for module in family.layer:
        if module in absent:
            continue
        expected[f"{module}.weight"] = rows.get(module) or norms.get(module, (hidden,))
        if module in biased:
            expected[f"{module}.bias"] = rows[module][:1]
    return expected | {name: bare[name] for name in family.bare if name not in absent}


def check_shapes(
    family: Family,
    config: Mapping[str, Any],
    stored: Mapping[str, tuple[int, ...]],
    where: str,
    *,
    files: Mapping[str, str] | None = None,
) -> None:
    """Check the tensors of a checkpoint against the layout.

    Args:
        family: the row of the family table.
        config: config.json with its sizes checked (positive integers).
        stored: HF name -> shape. An output matrix may be stored even if config.json ties it to the embedding. If they
            differ, Transformers uses the stored one.
        where: the model's path, for messages.
        files: HF name -> the file that holds it, for messages.

    Raises:
        DamagedFileError: a tensor is missing or has the wrong shape. The hint names the setting of config.json to
            change, if a change would make all tensors fit.
        UnsupportedArchitectureError: a tensor does not belong to a model of these sizes.
    """
    expected = expected_shapes(family, config, len(stored), where)
    places = files or {}

    def hint(otherwise: str) -> str:
        changes = fitting_changes(family, config, stored, lambda new: expected_shapes(family, new, len(stored), where))
        return described(changes, config) if changes else otherwise

    missing = [name for name in expected if name not in stored]
    if missing:
        others = next((name for name in sorted(stored) if name not in expected and name != OUTPUT), None)
        raise DamagedFileError(
            f"{where}: tensor {missing[0]!r} is missing ({len(missing)} missing in total)"
            f"{f', and {others!r} has no place in the model' if others else ''}",
            hint(
                f"use a checkpoint with the tensor names of {family.architecture}; Transformers would fill it with "
                "random values"
                if others
                else "save or download the checkpoint again; Transformers would fill it with random values"
            ),
        )
    for name, shape in stored.items():
        wanted = expected.get(name)
        if name == OUTPUT:
            wanted = expected["model.embed_tokens.weight"]
        if wanted is None:
            place = places.get(name, where)
            drop = hint("Transformers ignores it; to remove it, load the model with Transformers and save it again")
            try:
                family.gguf_name(name)
            except UnsupportedArchitectureError as error:
                raise UnsupportedArchitectureError(f"{place}: {error.message}", drop) from error
            raise UnsupportedArchitectureError(
                f"{place}: tensor {name!r} is not part of a model with these sizes", drop
            )
        if shape != wanted and 0 in shape:
            raise DamagedFileError(
                f"{places.get(name, where)}: tensor {name!r} is empty (shape {list(shape)})",
                "DeepSpeed ZeRO-3 saves so: set stage3_gather_16bit_weights_on_model_save and save the model again, or "
                "run zero_to_fp32.py in the folder of its checkpoint",
            )
        if shape != wanted:
            raise DamagedFileError(
                f"{places.get(name, where)}: tensor {name!r} has shape {list(shape)}, but config.json gives "
                f"{list(wanted)} ({named_keys(name, config)})",
                hint(_resize_both(stored) or "use the config.json that was saved with these weights"),
            )


def _resize_both(stored: Mapping[str, tuple[int, ...]]) -> str | None:
    """Return the next step if the embedding and the output matrix have different numbers of rows."""
    embedding, output = stored.get("model.embed_tokens.weight"), stored.get(OUTPUT)
    if embedding is None or output is None or embedding[:1] == output[:1]:
        return None
    return (
        f"the embedding has {embedding[0]} rows and {OUTPUT} has {output[0]}: give both the same rows with "
        "model.resize_token_embeddings, then save the model"
    )
