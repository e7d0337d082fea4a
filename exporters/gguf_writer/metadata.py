"""The key-values of a GGUF, as llama.cpp's converter writes them.

Keys and types follow the GGUF spec ("Standardized key-value pairs"). Where the spec leaves a choice, they follow
llama.cpp's converter. Unlike there, no value depends on the vocabulary size.
`benchmarks/formats/compare_with_llamacpp.py` compares every key of unpruned models.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf

from compact.architectures.family import ConfigNumber, Family, default_sliding
from compact.architectures.layer_shapes import LayerShape, layer_shapes
from compact.architectures.rope import Rope
from compact.base.errors import DamagedFileError, QuantizedCheckpointError, UnsupportedArchitectureError, UsageError
from compact.base.files import read_json_object
from compact.base.numbers import number
from compact.checkpoints.names import GENERATION_CONFIG
from compact.sources.from_gguf_config import SAMPLING
from exporters.gguf_writer.layer_keys import add_layers, check_layers
from exporters.gguf_writer.linear_attention_keys import add_linear, check_linear

Scalar = str | int | float | bool

FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "BF16": gguf.LlamaFileType.MOSTLY_BF16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
_UINT32_MAX = (1 << 32) - 1
_UINT64_MAX = (1 << 64) - 1
# Sampler settings that GGUF stores as integers.
_INTEGER_SAMPLING = frozenset({"top_k"})


@dataclass(frozen=True)
class GgufMetadata:
    """Metadata that the checkpoint's files do not have.

    Attributes:
        name: `general.name`; None: use the model card's name, or the directory's name.
        base_model: Hub id (`org/name`) of the unpruned model; None: keep the model card's value.
        description: `general.description`.
        quantized_by: `general.quantized_by`.
        card: front matter (licence, languages) of the source model. The checkpoint's own card takes precedence.
        extra: additional key-values, written as they are (`compact.plan_id`, ...). bool, str, int and float become
            BOOL, STRING, UINT32/UINT64/INT64 and FLOAT64.
    """

    name: str | None = None
    base_model: str | None = None
    description: str | None = None
    quantized_by: str | None = None
    card: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class Shape:
    """The checked sizes of a decoder. Each is a positive integer that fits a GGUF key.

    `head_dim` is the head dimension of the full-attention layers. `blocks` has the shape of every layer.
    """

    layers: int
    context: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    rms_eps: float
    blocks: tuple[LayerShape, ...]


def _integer(config: Mapping[str, Any], key: str, where: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _UINT32_MAX:
        raise DamagedFileError(f"{where}: {key} = {value!r} is not a positive 32-bit integer")
    return value


def read_shape(family: Family, config: Mapping[str, Any], where: str) -> Shape:
    """Read the sizes in config.json and refuse settings that llama.cpp's graph of the layout does not support.

    Raises:
        DamagedFileError: a size is missing, is not a positive 32-bit integer, or contradicts another size.
        QuantizedCheckpointError: the checkpoint is quantised.
        UnsupportedArchitectureError: the GGUF layout cannot express a setting.
    """
    if config.get("quantization_config") is not None:
        raise QuantizedCheckpointError(f"{where}: the checkpoint is quantised", "export the unquantised checkpoint")
    heads = _integer(config, "num_attention_heads", where)
    hidden = _integer(config, "hidden_size", where)
    kv_heads = _integer(config, "num_key_value_heads", where, family.default_kv_heads or heads)
    if config.get("head_dim") is None and hidden % heads:
        raise DamagedFileError(f"{where}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    head_dim = _integer(config, "head_dim", where, family.default_head_dim or hidden // heads)
    if heads % kv_heads or head_dim % 2:
        raise DamagedFileError(
            f"{where}: {heads} heads, {kv_heads} key-value heads and head_dim {head_dim} contradict each other"
        )
    eps = config.get("rms_norm_eps", 1e-6)
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 <= eps < 1:
        raise DamagedFileError(f"{where}: rms_norm_eps = {eps!r} is not a small positive number")
    layers = _integer(config, "num_hidden_layers", where)
    _refuse_other_graph(family, config, where)
    blocks = tuple(layer_shapes(family, config))
    if family.global_head_dim is not None:
        head_dim = check_layers(family, config, blocks, where)
    if family.linear_interval is not None:
        check_linear(family, config, where)
    return Shape(
        layers=layers,
        context=_integer(config, "max_position_embeddings", where),
        hidden=hidden,
        inner=_integer(config, "intermediate_size", where),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=_integer(config, "vocab_size", where),
        rms_eps=float(eps),
        blocks=blocks,
    )


def _refuse_other_graph(family: Family, config: Mapping[str, Any], where: str) -> None:
    """Refuse settings that have no GGUF key and that llama.cpp's graph computes differently."""
    layers, hidden, heads = (int(config[k]) for k in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    activation = family.activation(config)
    if activation not in family.activations:
        raise UnsupportedArchitectureError(
            f"{where}: hidden_act {activation!r} is not supported: "
            f"llama.cpp always computes {family.activations[0]} in this layout"
        )
    if family.sliding_pattern is None and family.linear_interval is None and not family.drops_window:
        _refuse_window(config, layers, where)
    # "vision": only image tokens attend to later positions, and images are not supported here.
    if config.get("use_bidirectional_attention") not in (None, False, "vision"):
        raise UnsupportedArchitectureError(
            f"{where}: use_bidirectional_attention is set, so this is not a causal language model"
        )
    if not family.own_head_dim and family.head_dim_of(config) != hidden // heads:
        raise UnsupportedArchitectureError(
            f"{where}: head_dim {config['head_dim']!r} is not supported: llama.cpp always uses {hidden // heads} here"
        )
    if not family.untied and not family.tied(config):
        raise UnsupportedArchitectureError(f"{where}: a GGUF of this layout cannot hold a separate lm_head")
    _refuse_other_query_scale(family, config, where)
    if family.no_rope_interval is not None and _rope_layers(family, config, layers) != default_sliding(
        family.no_rope_interval, layers
    ):
        raise UnsupportedArchitectureError(
            f"{where}: no_rope_layers is not supported: llama.cpp always leaves out rotary positions in every "
            f"{family.no_rope_interval}th layer only"
        )


def _refuse_window(config: Mapping[str, Any], layers: int, where: str) -> None:
    """Refuse a sliding window in a layout without one in llama.cpp. `layer_types` takes precedence over other keys."""
    types, full_layers = config.get("layer_types"), config.get("max_window_layers")
    if types is not None:
        windowed = not isinstance(types, list) or any(kind != "full_attention" for kind in types)
    else:
        windowed = bool(config.get("use_sliding_window")) and not (
            isinstance(full_layers, int) and full_layers >= layers
        )
    if windowed and config.get("sliding_window", 4096) is not None:
        raise UnsupportedArchitectureError(
            f"{where}: a GGUF of this layout cannot express a sliding window (layer_types, use_sliding_window)",
            "if contexts will be shorter than the window, set use_sliding_window to false",
        )


def _rope_layers(family: Family, config: Mapping[str, Any], layers: int) -> list[bool]:
    """Return whether each layer has rotary positions. `no_rope_layers` in config.json marks those layers with 1."""
    marks = config.get("no_rope_layers")
    if isinstance(marks, list):
        return [bool(mark) for mark in marks][:layers]
    interval = config.get("no_rope_layer_interval") or family.no_rope_interval
    if not isinstance(interval, int) or interval < 1:
        raise DamagedFileError(f"config.json: no_rope_layer_interval = {interval!r} is not a positive integer")
    return default_sliding(interval, layers)


def _refuse_other_query_scale(family: Family, config: Mapping[str, Any], where: str) -> None:
    if family.query_scale_layers is None:
        return
    built_in = family.head_dim_of(config)
    if config["num_hidden_layers"] in family.query_scale_layers:
        built_in = int(config["hidden_size"]) // int(config["num_attention_heads"])
    asked = config.get("query_pre_attn_scalar", 256)
    if asked != built_in:
        raise UnsupportedArchitectureError(
            f"{where}: query_pre_attn_scalar {asked!r} is not supported: llama.cpp always uses {built_in} for "
            f"{config['num_hidden_layers']} layers of this layout"
        )


def add_hyperparameters(
    writer: gguf.GGUFWriter, family: Family, config: Mapping[str, Any], shape: Shape, rope: Rope, quant: str
) -> None:
    """Write the `ARCH.*` keys and `general.file_type` (GGUF spec, "LLM")."""
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(_of_layers(shape.inner * block.ffn_width for block in shape.blocks))
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(_of_layers(block.kv_heads for block in shape.blocks))
    _add_rope(writer, family, rope)
    writer.add_layer_norm_rms_eps(shape.rms_eps)
    # If the configuration class does not define head_dim, the converter writes it only if config.json has it.
    if family.head_dim == "always" or (family.head_dim == "configured" and config.get("head_dim") is not None):
        writer.add_key_length(shape.head_dim)
        writer.add_value_length(shape.head_dim)
    for setting in family.numbers:
        _add_number(writer, family, setting, config)
    sliding = family.sliding_layers(config)
    unusual = sliding is not None and sliding != default_sliding(family.sliding_pattern or 1, shape.layers)
    if sliding is not None and (unusual or family.global_head_dim is not None):
        writer.add_sliding_window_pattern(sliding)
    if family.global_head_dim is not None:
        add_layers(writer, family, config, shape.head_dim)
    writer.add_file_type(FILE_TYPES[quant])
    if family.linear_interval is not None:
        add_linear(writer, family, config, int(shape.head_dim * rope.share))
    if family.writes_vocab_size:
        writer.add_vocab_size(shape.vocab)
        writer.add_rope_dimension_count(shape.head_dim)


def _of_layers(values: Iterable[int]) -> int | list[int]:
    """Return one number if all layers have the same value, otherwise the list."""
    every = list(values)
    return every[0] if len(set(every)) == 1 else every


def _add_number(writer: gguf.GGUFWriter, family: Family, setting: ConfigNumber, config: Mapping[str, Any]) -> None:
    """Write one more setting. Raises DamagedFileError, or UnsupportedArchitectureError if a required one is off."""
    value = config.get(setting.config, setting.default)
    if value is None:
        if setting.required:
            raise UnsupportedArchitectureError(
                f"config.json: {setting.config} = {value!r} is not supported: llama.cpp needs a value for this layout"
            )
        return
    checked = number(value, setting.config, "config.json", positive=True)
    key = f"{family.gguf_arch}.{setting.gguf}"
    if not setting.integer:
        writer.add_float32(key, float(checked))
    elif isinstance(checked, int) and checked <= _UINT32_MAX:
        writer.add_uint32(key, checked)
    else:
        raise DamagedFileError(f"config.json: {setting.config} = {value!r} is not a positive 32-bit integer")


def _add_rope(writer: gguf.GGUFWriter, family: Family, rope: Rope) -> None:
    scaled = rope.kind != "default"
    if (scaled and not family.writes_theta) or (rope.kind == "llama3" and not family.rope_factors):
        raise UnsupportedArchitectureError(f"a GGUF of this layout cannot express rope scaling {rope.kind!r}")
    if not family.writes_theta:
        if rope.theta != family.theta:
            writer.add_rope_freq_base(rope.theta)
        return
    if rope.kind in ("linear", "yarn"):
        kinds = {"linear": gguf.RopeScalingType.LINEAR, "yarn": gguf.RopeScalingType.YARN}
        writer.add_rope_scaling_type(kinds[rope.kind])
        writer.add_rope_scaling_factor(rope.scaling["factor"])
    if rope.kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(int(rope.scaling["original_max_position_embeddings"]))
        optional = {
            "extrapolation_factor": writer.add_rope_scaling_yarn_ext_factor,
            "attention_factor": writer.add_rope_scaling_yarn_attn_factor,
            "attn_factor": writer.add_rope_scaling_yarn_attn_factor,
            "beta_fast": writer.add_rope_scaling_yarn_beta_fast,
            "beta_slow": writer.add_rope_scaling_yarn_beta_slow,
        }
        for key, add in optional.items():
            if key in rope.scaling:
                add(rope.scaling[key])
    writer.add_rope_freq_base(rope.theta)
    if rope.local_theta is not None:
        writer.add_float32(f"{family.gguf_arch}.rope.freq_base_swa", rope.local_theta)


def general_metadata(checkpoint: Path, wanted: GgufMetadata, n_params: int) -> gguf.Metadata:
    """Collect the `general.*` values from the model card's front matter, generation_config.json and the caller.

    The directory's name is used only if there is no other name. gguf's own loader would also derive a version or a
    fine-tune from it, which is wrong for a temporary directory.

    Raises:
        DamagedFileError: README.md or generation_config.json cannot be parsed.
    """
    try:
        card = {**wanted.card, **gguf.Metadata.load_model_card(checkpoint)}
        if wanted.base_model is not None:
            card = {**card, "base_model": wanted.base_model}
        meta = gguf.Metadata.apply_metadata_heuristic(gguf.Metadata(), card, None, None, n_params)
    except Exception as error:  # from a YAML or JSON parser, or from unexpected front matter
        raise DamagedFileError(
            f"{checkpoint / 'README.md'}: front matter cannot be read: {' '.join(str(error).split())[:120]}",
            "repair the front matter, or remove the file",
        ) from error
    path = checkpoint / GENERATION_CONFIG
    generation = read_json_object(path) if path.is_file() else {}
    for key, short in SAMPLING.items():
        value = generation.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            setattr(meta, f"sampling_{short}", int(value) if key in _INTEGER_SAMPLING else float(value))
    meta.name = wanted.name or meta.name or checkpoint.name
    meta.size_label = gguf.size_label(n_params, n_params, 0, 0)
    meta.description = wanted.description or meta.description
    meta.quantized_by = wanted.quantized_by or meta.quantized_by
    return meta


def add_general(writer: gguf.GGUFWriter, meta: gguf.Metadata) -> None:
    """Write `general.*`. Raises DamagedFileError if a value of the model card has the wrong type."""
    writer.add_type(gguf.GGUFType.MODEL)
    try:
        meta.set_gguf_meta_model(writer)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise DamagedFileError(f"README.md: a front matter value has the wrong type: {str(error)[:120]}") from error
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def add_extra(writer: gguf.GGUFWriter, extra: Mapping[str, Scalar]) -> None:
    """Write the caller's keys. Raises UsageError if a key exists already or no GGUF type fits the value."""
    for key, value in extra.items():
        if key in writer.kv_data[0]:
            raise UsageError(f"metadata key {key!r} is reserved for the exporter")
        _add_scalar(writer, key, value)


def _add_scalar(writer: gguf.GGUFWriter, key: str, value: Scalar) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, float) and math.isfinite(value):
        writer.add_float64(key, value)
    elif isinstance(value, int) and 0 <= value <= _UINT32_MAX:
        writer.add_uint32(key, value)
    elif isinstance(value, int) and 0 <= value <= _UINT64_MAX:
        writer.add_uint64(key, value)
    elif isinstance(value, int) and -(1 << 63) <= value < 0:
        writer.add_int64(key, value)
    else:
        raise UsageError(f"metadata {key!r}: no GGUF type can hold {value!r}")
