"""Sizes that may differ between the layers of a model.

In most layouts, all layers have the same sizes. Gemma 4 has heads and FFNs of two widths, and layers that reuse keys
and values (Transformers, `configuration_gemma4.py`). Qwen3.5 has layers with linear attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from compact.architectures.family import Family
from compact.base.errors import DamagedFileError, UnsupportedArchitectureError

# Far above any model. A larger number in a damaged file would fill the memory with a list of layers.
MOST_LAYERS = 10_000
# The settings that `per_layer_config` in config.json may change.
_OVERRIDES = frozenset({"head_dim", "num_key_value_heads"})
_HINT = "correct config.json, or download it again"


@dataclass(frozen=True)
class LayerShape:
    """Sizes of one layer.

    Attributes:
        head_dim: width of an attention head.
        kv_heads: number of key-value heads.
        own_kv: the layer computes keys and values. Otherwise it reuses those of an earlier layer.
        own_values: the layer has a value projection. Otherwise the keys are also the values.
        ffn_width: the FFN has this many times `intermediate_size` channels.
        linear: the layer has linear attention (gated delta net). The sizes of attention above then do not apply.
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
        key_heads, value_heads: number of heads.
        key_dim, value_dim: width of a head.
        kernel: width of the convolution, in positions.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int

    @property
    def keys(self) -> int:
        """Total width of the keys. The queries have the same width."""
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        """Total width of the values."""
        return self.value_heads * self.value_dim

    @property
    def channels(self) -> int:
        """Channels of the convolution, which covers queries, keys and values."""
        return 2 * self.keys + self.values


def layer_shapes(family: Family, config: Mapping[str, Any]) -> list[LayerShape]:
    """Return the shape of every layer.

    Args:
        family: the row of the family table.
        config: config.json with its sizes checked (positive integers).

    Raises:
        DamagedFileError: a setting is invalid.
        UnsupportedArchitectureError: `per_layer_config` changes something other than heads.
    """
    layers = int(config["num_hidden_layers"])
    if layers > MOST_LAYERS:
        raise DamagedFileError(f"config.json: num_hidden_layers = {layers}, expected at most {MOST_LAYERS}", _HINT)
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


# Key of config.json -> Transformers' default (`Qwen3_5TextConfig`).
_LINEAR_SIZES = {
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
}


def linear_shape(family: Family, config: Mapping[str, Any]) -> LinearShape | None:
    """Return the sizes of linear attention, or None for a layout without it. Raises DamagedFileError."""
    if family.linear_interval is None:
        return None
    return LinearShape(*(_size(config.get(key, default), key) for key, default in _LINEAR_SIZES.items()))


def shared_kv_layers(family: Family, config: Mapping[str, Any]) -> int:
    """Return how many of the last layers reuse keys and values of earlier ones. Raises DamagedFileError."""
    value = config.get("num_kv_shared_layers", 0) if family.shared_kv else 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < int(config["num_hidden_layers"]):
        most = int(config["num_hidden_layers"]) - 1
        raise DamagedFileError(f"config.json: num_kv_shared_layers = {str(value)[:40]}, expected 0 to {most}", _HINT)
    return value


def per_layer_size(family: Family, config: Mapping[str, Any]) -> int:
    """Return the width of a layer's vector in the per-layer embedding, or 0 if the model has no such embedding.

    Raises:
        DamagedFileError: the width is not a valid size.
        UnsupportedArchitectureError: the per-layer embedding has another vocabulary size than the model.
    """
    if family.per_layer_inputs is None:
        return 0
    usual_rows, usual_width = family.per_layer_inputs
    value = config.get("hidden_size_per_layer_input", usual_width)
    value = 0 if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 24:
        raise DamagedFileError(
            f"config.json: hidden_size_per_layer_input = {str(value)[:40]} is not a valid size", _HINT
        )
    rows = config.get(PER_LAYER_VOCABULARY, usual_rows)
    if value and rows != config["vocab_size"]:
        raise UnsupportedArchitectureError(
            f"config.json: {PER_LAYER_VOCABULARY} {str(rows)[:40]} differs from vocab_size {config['vocab_size']}",
            "use a model whose two embeddings have the same number of rows, because they are pruned together",
        )
    return value


# Key of config.json for the number of rows of the per-layer embedding.
PER_LAYER_VOCABULARY = "vocab_size_per_layer_input"


def _overrides(family: Family, config: Mapping[str, Any], windowed: list[bool]) -> list[Mapping[str, Any]]:
    """Return the settings that differ in each layer. Published files have several keys, others `per_layer_config`."""
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
        raise DamagedFileError("config.json: per_layer_config is not an object", _HINT)
    for key, value in stored.items():
        if not str(key).isdecimal() or int(key) >= len(found) or not isinstance(value, Mapping):
            raise DamagedFileError(
                f"config.json: per_layer_config[{str(key)[:20]!r}] is not an object with the settings of a layer", _HINT
            )
        if odd := sorted(set(map(str, value)) - _OVERRIDES):
            raise UnsupportedArchitectureError(
                f"config.json: per_layer_config changes {odd[0][:40]!r} in layer {key}, which is not supported",
                "docs/families.md lists the supported models",
            )
        found[int(key)] = value
    return found


def _size(value: Any, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 24:
        raise DamagedFileError(f"config.json: {key} = {str(value)[:40]} is not a valid size", _HINT)
    return value
