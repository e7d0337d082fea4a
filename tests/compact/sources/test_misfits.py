"""Sizes of config.json that do not fit the weights, and settings and tensors of quantization."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from compact.base.errors import DamagedFileError, DataError, QuantizedCheckpointError, UnsupportedArchitectureError
from tests.checkpoints import copy_checkpoint, random_model, write_checkpoint
from tests.compact.sources.unusual_folders import change_config, change_weights, logits, opened, refusal

UP = "model.layers.0.mlp.up_proj"
HINTED = "if these weights are the right ones"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "m")


@pytest.mark.parametrize(
    ("key", "wrong", "hint"),
    [
        ("vocab_size", 400, "set vocab_size to 421"),
        ("hidden_size", 32, "set hidden_size to 64"),
        ("intermediate_size", 64, "set intermediate_size to 96"),
        ("num_hidden_layers", 3, "set num_hidden_layers to 2"),
        ("num_hidden_layers", 1, "set num_hidden_layers to 2"),
        ("num_attention_heads", 8, "num_attention_heads to 4"),
        ("num_key_value_heads", 4, "set num_key_value_heads to 2"),
        ("head_dim", 8, "set head_dim to 16"),
        ("attention_bias", True, "set attention_bias to false"),
    ],
)
def test_the_setting_to_change_is_named(model: Path, tmp_path: Path, key: str, wrong: object, hint: str) -> None:
    """Where Transformers does not refuse, it would use random values or leave layers out."""
    change_config(model, **{key: wrong})
    refusal(model, tmp_path, DataError, key, "config.json", hint, HINTED)


def test_following_the_hint(model: Path, tmp_path: Path) -> None:
    expected = logits(model)
    change_config(model, vocab_size=400, intermediate_size=64)
    hint = "set vocab_size to 421 and intermediate_size to 96 in config.json"
    refusal(model, tmp_path, DamagedFileError, "model.safetensors: tensor", "[421, 64]", "[400, 64]", hint)
    change_config(model, vocab_size=421, intermediate_size=96)
    assert torch.equal(logits(opened(model, tmp_path).directory), expected)


def test_biases_that_config_json_does_not_mention(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m", attention_bias=True)
    change_config(model, attention_bias=None)
    refusal(model, tmp_path, UnsupportedArchitectureError, "model.safetensors", "bias", "set attention_bias to true")


def test_layers_of_several_kinds(tmp_path: Path) -> None:
    """`layer_types` has an entry per layer, so it changes with their number."""
    model = random_model(tmp_path / "m", "Gemma3ForCausalLM")
    config = json.loads((model / "config.json").read_text())
    copy = copy_checkpoint(model, tmp_path / "copy", num_hidden_layers=8, layer_types=["full_attention"] * 8)
    refusal(copy, tmp_path, DamagedFileError, f"num_hidden_layers to {config['num_hidden_layers']}", "layer_types")


def test_only_the_head_was_resized(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m", tie_word_embeddings=False)
    change_weights(model, lambda w: {**w, "lm_head.weight": torch.cat([w["lm_head.weight"], w["lm_head.weight"][:4]])})
    refusal(model, tmp_path, DamagedFileError, "421 rows", "425", "resize_token_embeddings")


def test_empty_tensors(model: Path, tmp_path: Path) -> None:
    """What a save without gathering leaves of each parameter."""
    change_weights(model, lambda weights: {name: tensor[:0] for name, tensor in weights.items()})
    refusal(model, tmp_path, DamagedFileError, "model.safetensors: tensor", "is empty", "ZeRO-3", "zero_to_fp32.py")


@pytest.mark.parametrize(
    "setting",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": False},
        {"quant_method": "a-method-of-its-own"},
    ],
)
def test_a_setting_that_transformers_skips(model: Path, tmp_path: Path, setting: dict[str, Any]) -> None:
    expected = logits(model)
    change_config(model, quantization_config=setting)
    assert torch.equal(logits(model), expected)
    source = opened(model, tmp_path)
    assert torch.equal(logits(source.directory), expected)
    assert "quantization_config" not in source.config
    assert source.note is not None and "quantization_config" in source.note


@pytest.mark.parametrize("setting", [{}, {"bits": 4}])
def test_a_setting_without_a_method(model: Path, tmp_path: Path, setting: dict[str, Any]) -> None:
    """Transformers does not load such a folder. The weights are plain numbers, so the usual form is loadable."""
    expected = logits(model)
    change_config(model, quantization_config=setting)
    with pytest.raises(ValueError, match="quant_method"):
        logits(model)
    assert torch.equal(logits(opened(model, tmp_path).directory), expected)


@pytest.mark.parametrize(
    "setting",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "compressed-tensors"},
    ],
)
def test_a_setting_that_would_quantize_float_weights(model: Path, tmp_path: Path, setting: dict[str, Any]) -> None:
    expected = logits(model)
    change_config(model, quantization_config=setting)
    method = setting["quant_method"]
    refusal(model, tmp_path, QuantizedCheckpointError, method, "all weights are float", "remove quantization_config")
    change_config(model, quantization_config=None)
    assert torch.equal(logits(opened(model, tmp_path).directory), expected)


def bitsandbytes(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    packed = torch.zeros(weights[f"{UP}.weight"].numel() // 2, 1, dtype=torch.uint8)
    return {**weights, f"{UP}.weight": packed, f"{UP}.weight.absmax": torch.zeros(96), f"{UP}.weight.quant_map": packed}


def gptq(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    rest = {name: tensor for name, tensor in weights.items() if name != f"{UP}.weight"}
    return {**rest, f"{UP}.qweight": torch.zeros(8, 96, dtype=torch.int32), f"{UP}.scales": torch.zeros(1, 96)}


def fp8(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    cast = weights[f"{UP}.weight"].to(torch.float8_e4m3fn)
    return {**weights, f"{UP}.weight": cast, f"{UP}.weight_scale_inv": torch.ones(1, 1)}


def mlx(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    packed = torch.zeros(96, 8, dtype=torch.uint32)
    return {**weights, f"{UP}.weight": packed, f"{UP}.scales": torch.zeros(96, 1), f"{UP}.biases": torch.zeros(96, 1)}


@pytest.mark.parametrize(
    ("pack", "name"), [(bitsandbytes, "bitsandbytes"), (gptq, "GPTQ"), (fp8, "FP8"), (mlx, "mlx_lm.convert")]
)
@pytest.mark.parametrize("says", [True, False])
def test_packed_weights(model: Path, tmp_path: Path, pack: Any, name: str, says: bool) -> None:
    change_weights(model, pack)
    if says and pack is mlx:
        change_config(model, quantization={"bits": 4, "group_size": 64})
    elif says:
        name = "quanto"
        change_config(model, quantization_config={"quant_method": "quanto"})
    refusal(model, tmp_path, QuantizedCheckpointError, "model.safetensors", UP, name, "float checkpoint")


def test_float_weights_of_mlx(model: Path, tmp_path: Path) -> None:
    expected = logits(model)
    save_file(load_file(model / "model.safetensors"), model / "model.safetensors", metadata={"format": "mlx"})
    assert torch.equal(logits(opened(model, tmp_path).directory), expected)


def test_buffers_of_other_types(model: Path, tmp_path: Path) -> None:
    """Older checkpoints have masks among their buffers. Transformers ignores them."""
    expected = logits(model)
    mask = {"model.layers.0.attention.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool)}
    change_weights(model, lambda weights: {**weights, **mask})
    assert torch.equal(logits(model), expected)
    assert torch.equal(logits(opened(model, tmp_path).directory), expected)
