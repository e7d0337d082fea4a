"""Qwen3.5: the language model of a multimodal checkpoint, and what of the published files is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen3_5Config, Qwen3_5ForConditionalGeneration

from compact.base.cache import Cache
from compact.base.errors import DamagedFileError
from compact.pruning.budget import count_parts
from compact.sources.model_source import open_directory, open_source
from tests.checkpoints import train_tokenizer, write_checkpoint

TEXT = {
    "vocab_size": 421, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "linear_num_key_heads": 4, "linear_num_value_heads": 4,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16, "max_position_embeddings": 256, "rope_parameters": {
        "rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25, "mrope_interleaved": True,
        "mrope_section": [2, 1, 1]},
}  # fmt: skip
VISION = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64,
          "num_position_embeddings": 16, "patch_size": 4}  # fmt: skip
IDS = {"image_token_id": 400, "video_token_id": 401, "vision_start_token_id": 402, "vision_end_token_id": 403}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_language_model_computes_what_the_whole_model_does(tmp_path: Path, tied: bool) -> None:
    torch.manual_seed(0)
    config = Qwen3_5Config(text_config=TEXT, vision_config=VISION, tie_word_embeddings=tied, **IDS)
    config.text_config.tie_word_embeddings = tied
    whole: Any = Qwen3_5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.08)
    model = tmp_path / "m"
    whole.save_pretrained(model)
    (model / "tokenizer.json").write_text(json.dumps(train_tokenizer()), encoding="utf-8")
    weights = load_file(model / "model.safetensors")
    # Published files hold a head that predicts a second token, which Transformers leaves out.
    save_file({**weights, "mtp.fc.weight": torch.zeros(2, 2)}, model / "model.safetensors", {"format": "pt"})
    source = open_source(str(model), Cache(tmp_path / "cache", [], []))
    assert source.family.architecture == "Qwen3_5ForCausalLM"
    assert source.tied == tied
    ids = torch.arange(60)[None] * 7 % 400
    taken = AutoModelForCausalLM.from_pretrained(source.directory, dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.equal(taken(ids).logits, whole(input_ids=ids).logits)


def test_the_second_head_of_a_text_checkpoint_is_left_out(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m", "qwen3_5_text")
    weights = load_file(model / "model.safetensors")
    save_file({**weights, "mtp.norm.weight": torch.zeros(64)}, model / "model.safetensors", {"format": "pt"})
    assert open_directory(model, name="m", origin="m").tensors.keys() == weights.keys()


def test_linear_attention_counts_as_attention(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m", "qwen3_5_text")
    source = open_directory(model, name="m", origin="m")
    parts = count_parts(source.tensors, source.config)
    # Two layers: qkv, z, out of 64 x 64, a and b of 4 heads, a kernel of four positions, and A_log and dt_bias.
    linear = 2 * (192 * 64 + 64 * 64 + 64 * 64 + 2 * 4 * 64 + 192 * 4 + 2 * 4)
    full = 2 * (4 * 32) * 64 + 2 * (2 * 32) * 64 + 4 * 32 * 64
    assert parts.attention == linear + full


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_types": ["linear_attention", "sliding_attention", "full_attention"]},
        {"layer_types": ["full_attention"]},
        {"layer_types": None, "full_attention_interval": 0},
        {"linear_num_key_heads": "4"},
        {"linear_conv_kernel_dim": -1},
    ],
)
def test_a_damaged_configuration(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = write_checkpoint(tmp_path / "m", "qwen3_5_text")
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
    with pytest.raises(DamagedFileError):
        open_directory(model, name="m", origin="m")
