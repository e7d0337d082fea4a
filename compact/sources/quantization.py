"""Refuse checkpoints whose weights are quantized, and recognise settings that are left over above float weights.

Transformers quantizes or unpacks a model if config.json has a `quantization_config` with a method that it knows
(`get_hf_quantizer` of its `quantizers.auto`). It loads the weights as they are if the method is another one, or if it
is bitsandbytes with neither 4 nor 8 bits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compact.base.errors import QuantizedCheckpointError
from compact.checkpoints.safetensors_file import DTYPE_BYTES, TensorRef

KEYS = ("quantization_config", "compression_config", "quantization")
# End of a tensor's name -> what packs weights with such tensors.
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

    It is also None for a setting that Transformers skips, or that names no method.
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


def refuse_quantized(config: Mapping[str, Any], where: Path) -> None:
    """Raise QuantizedCheckpointError if config.json alone shows that the weights are quantized.

    Args:
        config: config.json.
        where: its path.
    """
    method = quantization_method(config) or _mlx_method(config)
    if method is not None:
        raise QuantizedCheckpointError(
            f"{where}: the checkpoint is already quantised ({method}, quantization_config)",
            "start from the float checkpoint of this model; if all of its weights are float, name its folder after "
            "removing quantization_config from config.json",
        )


def packed_tensor(tensors: Mapping[str, TensorRef]) -> tuple[str, str] | None:
    """Return the name of a tensor that is packed or belongs to one, and what packs so; None if all are plain."""
    has_mlx = any(ref.dtype == "U32" for ref in tensors.values())
    for name in sorted(tensors):
        for pattern, method in _PACKED:
            if pattern.search(name):
                return name, method
        if has_mlx and _MLX.search(name):
            return name, "MLX"
    return None


def refuse_packed(tensors: Mapping[str, TensorRef], config: Mapping[str, Any], where: Path) -> None:
    """Refuse quantized weights, and a method of quantization that is left over above float weights.

    Args:
        tensors: stored name -> location.
        config: config.json.
        where: its path.

    Raises:
        QuantizedCheckpointError: with the tensor or the key of config.json that shows it.
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
        raise QuantizedCheckpointError(
            f"{where}: quantization_config ({method}), but all weights are float; Transformers would quantize or "
            "unpack them",
            "remove quantization_config from config.json to use the float weights as they are",
        )
    refuse_quantized(config, where)
