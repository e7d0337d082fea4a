"""What one layer of a model looks like: the sizes that differ between the layers of a layout.

Most layouts have equal layers. Gemma 4 has heads of two widths, layers without keys and values of their own, and FFNs
of two widths (Transformers, `configuration_gemma4.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from compact.errors import DamagedFileError, UnsupportedArchitectureError
from compact.family import Family

# Far above any model; a larger number is damage, and a list as long would fill the memory.
MOST_LAYERS = 10_000
# What `per_layer_config` of config.json may say of a layer.
_OVERRIDES = frozenset({"head_dim", "num_key_value_heads"})


@dataclass(frozen=True)
class LayerShape:
    """Sizes of one layer.

    Attributes:
        head_dim: width of an attention head.
        kv_heads: key-value heads.
        own_kv: the layer has keys and values of its own; otherwise it uses those of an earlier layer.
        own_values: it has a value projection; otherwise the keys are the values too.
        linear: the layer is linear attention (gated delta net), and the sizes above do not count.
        ffn_width: its FFN has this many times `intermediate_size` channels.
    """

    head_dim: int
    kv_heads: int
    own_kv: bool = True
    own_values: bool = True
    ffn_width: int = 1
    linear: bool = False


@dataclass(frozen=True)
class LinearShape:
    """Sizes of linear attention (gated delta net).

    Attributes:
        key_heads, value_heads: heads.
        key_dim, value_dim: width of one.
        kernel: positions that the convolution looks at.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int

    @property
    def keys(self) -> int:
        """Width of all keys, or of all queries."""
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        """Width of all values."""
        return self.value_heads * self.value_dim

    @property
    def channels(self) -> int:
        """Channels of the convolution: queries, keys and values."""
        return 2 * self.keys + self.values


def layer_shapes(family: Family, config: Mapping[str, Any]) -> list[LayerShape]:
    """The shape of every layer.

    Args:
        family: the row of the family table.
        config: config.json with its sizes checked (positive integers).

    Raises:
        DamagedFileError: a setting is not what it should be.
        UnsupportedArchitectureError: `per_layer_config` changes something else than heads.
    """
    layers = int(config["num_hidden_layers"])
    if layers > MOST_LAYERS:
        raise DamagedFileError(f"config.json: num_hidden_layers = {layers}, at most {MOST_LAYERS} were expected")
    same = LayerShape(family.head_dim_of(config), family.kv_heads(config))
    if (linear := family.linear_layers(config)) is not None:
        return [replace(same, linear=kind) for kind in linear]
    if family.global_head_dim is None and not family.shared_kv:
        return [same] * layers
    windowed = family.sliding_layers(config) or [False] * layers
    shared = shared_kv_layers(family, config)
    wide = 2 if family.shared_kv and config.get("use_double_wide_mlp") else 1
    overrides = _overrides(family, config, windowed)
    return [
        LayerShape(
            head_dim=_size(overrides[n].get("head_dim", same.head_dim), "head_dim"),
            kv_heads=_size(overrides[n].get("num_key_value_heads", same.kv_heads), "num_key_value_heads"),
            own_kv=n < layers - shared,
            own_values=bool(windowed[n] or not config.get("attention_k_eq_v")),
            ffn_width=1 if n < layers - shared else wide,
        )
        for n in range(layers)
    ]


# config.json's key -> what Transformers takes where it has none (`Qwen3_5TextConfig`).
_LINEAR_SIZES = {
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
}


def linear_shape(family: Family, config: Mapping[str, Any]) -> LinearShape | None:
    """Sizes of the linear attention; None for a layout without. Raises DamagedFileError."""
    if family.linear_interval is None:
        return None
    return LinearShape(*(_size(config.get(key, default), key) for key, default in _LINEAR_SIZES.items()))


def shared_kv_layers(family: Family, config: Mapping[str, Any]) -> int:
    """How many of the last layers use keys and values of earlier ones. Raises DamagedFileError."""
    value = config.get("num_kv_shared_layers", 0) if family.shared_kv else 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < int(config["num_hidden_layers"]):
        raise DamagedFileError(f"config.json: num_kv_shared_layers = {str(value)[:40]} does not fit the layers")
    return value


def per_layer_size(family: Family, config: Mapping[str, Any]) -> int:
    """Width of a layer's vector in the per-layer embedding, 0 where the model has no such embedding.

    Raises:
        DamagedFileError: no size.
        UnsupportedArchitectureError: the per-layer embedding has another vocabulary than the model.
    """
    if family.per_layer_inputs is None:
        return 0
    usual_rows, usual_width = family.per_layer_inputs
    value = config.get("hidden_size_per_layer_input", usual_width)
    value = 0 if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 24:
        raise DamagedFileError(f"config.json: hidden_size_per_layer_input = {str(value)[:40]} is not a size")
    rows = config.get(PER_LAYER_VOCABULARY, usual_rows)
    if value and rows != config["vocab_size"]:
        raise UnsupportedArchitectureError(
            f"config.json: {PER_LAYER_VOCABULARY} {str(rows)[:40]} differs from vocab_size {config['vocab_size']}",
            "the two embeddings are cut together; use a model whose embeddings have equal rows",
        )
    return value


# config.json's key for the rows of the per-layer embedding.
PER_LAYER_VOCABULARY = "vocab_size_per_layer_input"


def _overrides(family: Family, config: Mapping[str, Any], windowed: list[bool]) -> list[Mapping[str, Any]]:
    """What differs in each layer, from either spelling: that of the published files, or `per_layer_config`."""
    if "per_layer_config" not in config:
        everything: dict[str, Any] = {}
        if family.global_head_dim is not None:
            everything["head_dim"] = config.get("global_head_dim", family.global_head_dim)
        if config.get("attention_k_eq_v") and config.get("num_global_key_value_heads") is not None:
            everything["num_key_value_heads"] = config["num_global_key_value_heads"]
        return [{} if window else everything for window in windowed]
    stored = {} if config["per_layer_config"] is None else config["per_layer_config"]
    found: list[Mapping[str, Any]] = [{} for _ in windowed]
    if not isinstance(stored, Mapping):
        raise DamagedFileError("config.json: per_layer_config is not an object")
    for key, value in stored.items():
        if not str(key).isdecimal() or int(key) >= len(found) or not isinstance(value, Mapping):
            raise DamagedFileError(f"config.json: per_layer_config[{str(key)[:20]!r}] does not name a layer's settings")
        if odd := sorted(set(map(str, value)) - _OVERRIDES):
            raise UnsupportedArchitectureError(f"config.json: per_layer_config changes {odd[0][:40]!r} of layer {key}")
        found[int(key)] = value
    return found


def _size(value: Any, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 24:
        raise DamagedFileError(f"config.json: {key} = {str(value)[:40]} is not a size")
    return value
