"""A small random multimodal model."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from tests.checkpoints import train_tokenizer

TEXT = {
    "vocab_size": 421, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 7, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 24,
    "max_position_embeddings": 256, "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}},
}  # fmt: skip


VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
          "image_size": 28, "patch_size": 14}  # fmt: skip


def write_multimodal(out: Path) -> Path:
    """A small random Gemma 3 with a vision tower, as Transformers saves it, and a tokenizer beside it."""
    torch.manual_seed(0)
    config = Gemma3Config(text_config=TEXT, vision_config=VISION, mm_tokens_per_image=4, image_token_index=420)
    whole = Gemma3ForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.08)
    whole.save_pretrained(out)
    (out / "tokenizer.json").write_text(json.dumps(train_tokenizer()), encoding="utf-8")
    (out / "LICENSE").write_text("terms", encoding="utf-8")
    return out
