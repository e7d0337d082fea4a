"""Refuses checkpoints whose weights are quantized, and recognises leftover settings of checkpoints with float weights.

Transformers quantizes or unpacks a model if config.json has a `quantization_config` with a method that it knows
(`get_hf_quantizer` of its `quantizers.auto`). It loads the weights unchanged if it does not know the method, or if the
method is bitsandbytes with neither 4 nor 8 bits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compact.base.errors import QuantizedCheckpointError
from compact.checkpoints.names import CONFIG
from compact.checkpoints.safetensors_file import DTYPE_BYTES, TensorRef

KEYS = ("quantization_config", "compression_config", "quantization")
# (end of a tensor's name, the library or format that stores packed weights under such names).
_PACKED = (
    (re.compile(r"\.(?:qweight|qzeros|g_idx)$"), "GPTQ or AWQ"),
    (re.compile(r"\.(?:absmax|quant_map|nested_absmax|SCB|weight_format)$|\.quant_state\."), "bitsandbytes"),
    (re.compile(r"\.weight_scale_inv$"), "FP8"),
    (re.compile(r"\.(?:weight_packed|weight_scale|weight_zero_point|input_scale|weight_shape)$"), "compressed-tensors"),
    (re.compile(r"_(?:blocks|scales)$"), "MXFP4"),
    (re.compile(r"\.W_q$"), "HQQ"),
    (re.compile(r"\.weight\._(?:data|scale|shift)$"), "quanto"),
    (re.compile(r":(?:qdata|scale)$"), "torchao"),
    (re.compile(r"\.(?:codes|codebooks)$"), "AQLM"),
    (re.compile(r"\.(?:trellis|q_weight|q_scale|suh|svh)$"), "ExLlama"),
)
_MLX = re.compile(r"\.(?:scales|biases)$")


def quantization_method(config: Mapping[str, Any]) -> str | None:
    """Return the method with which Transformers would quantize or unpack the weights, or None.

    It is also None if Transformers ignores the setting, or if the setting names no method.
    """
    for key in ("quantization_config", "compression_config"):
        setting = config.get(key)
        if not setting:
            continue
        if not isinstance(setting, dict):
            return "unknown"
        method = setting.get("quant_method")
        if setting.get("load_in_4bit") or setting.get("load_in_8bit"):
            return str(method or "unknown")[:40]
        if method is not None and (key != "quantization_config" or _is_known(str(method))):
            return str(method)[:40]
    return None


def _mlx_method(config: Mapping[str, Any]) -> str | None:
    setting = config.get("quantization") or config.get("quantization_config")
    return "MLX" if isinstance(setting, dict) and "bits" in setting and "group_size" in setting else None


def _is_known(method: str) -> bool:
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    return method in AUTO_QUANTIZATION_CONFIG_MAPPING


def _named_key(config: Mapping[str, Any]) -> str:
    """Return the key of config.json that says how the weights are quantized."""
    return next((key for key in KEYS if config.get(key)), KEYS[0])


def refuse_quantized(config: Mapping[str, Any], where: Path) -> None:
    """Raise QuantizedCheckpointError if config.json alone shows that the weights are quantized.

    Args:
        config: config.json.
        where: its path.
    """
    method = quantization_method(config) or _mlx_method(config)
    if method is not None:
        key = _named_key(config)
        raise QuantizedCheckpointError(
            f"{where}: the checkpoint is already quantised ({method}, {key})",
            "start from the float checkpoint of this model; or, if the weights here are float, remove "
            f"{key} from {CONFIG} and name the folder",
        )


def packed_tensor(tensors: Mapping[str, TensorRef]) -> tuple[str, str] | None:
    """Return the name of a packed tensor and the library or format that packed it, or None if all tensors are plain."""
    has_mlx = any(ref.dtype == "U32" for ref in tensors.values())
    for name in sorted(tensors):
        for pattern, method in _PACKED:
            if pattern.search(name):
                return name, method
        if has_mlx and _MLX.search(name):
            return name, "MLX"
    return None


def refuse_packed(tensors: Mapping[str, TensorRef], config: Mapping[str, Any], where: Path) -> None:
    """Refuse quantized weights, and float weights that Transformers would quantize or unpack because of config.json.

    Args:
        tensors: stored name -> location.
        config: config.json.
        where: its path.

    Raises:
        QuantizedCheckpointError: the message names the tensor, or the key of config.json.
    """
    packed, method = packed_tensor(tensors), quantization_method(config)
    if packed is not None:
        name, by = packed
        dequantize = " (mlx_lm.convert --dequantize makes one)" if by == "MLX" else ""
        raise QuantizedCheckpointError(
            f"{tensors[name].file}: the checkpoint is already quantised ({method or by}, tensor {name!r})",
            f"start from the float checkpoint of this model{dequantize}",
        )
    if method is None:
        return
    if all(ref.dtype in DTYPE_BYTES for ref in tensors.values()):
        key = _named_key(config)
        raise QuantizedCheckpointError(
            f"{where}: {key} names {method}, but all weights are float; Transformers would quantize or unpack them",
            f"remove {key} from {CONFIG} to use the float weights as they are",
        )
    refuse_quantized(config, where)
