"""Gemma 4: the language model of a multimodal checkpoint, its second embedding, and FFNs of two widths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma4Config, Gemma4ForConditionalGeneration

from compact.base.cache import Cache
from compact.base.errors import MixtureOfExpertsError, PlanMismatchError, UnsupportedArchitectureError
from compact.pruning.plan import check_plan, read_plan
from compact.sources.model_source import open_directory, open_source
from tests.checkpoints import train_tokenizer, write_checkpoint
from tests.compact.pruned_checkpoints import plan_for, prune_to
from tests.family_models import VARIANTS

DOUBLE_WIDE = VARIANTS["Gemma4ForCausalLM"]["double-wide FFN"]
TEXT = {
    "vocab_size": 421, "vocab_size_per_layer_input": 421, "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16, "global_head_dim": 32,
    "hidden_size_per_layer_input": 32, "sliding_window": 24, "max_position_embeddings": 256, "num_kv_shared_layers": 3,
    "use_double_wide_mlp": True, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
          "num_key_value_heads": 2, "head_dim": 16, "position_embedding_size": 16}  # fmt: skip
AUDIO = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "output_proj_dims": 32,
         "subsampling_conv_channels": [8, 4]}  # fmt: skip
IDS = {"image_token_id": 400, "video_token_id": 401, "audio_token_id": 402, "boi_token_id": 403, "eoi_token_id": 404,
       "boa_token_id": 405, "eoa_token_index": 406}  # fmt: skip


def write_multimodal(out: Path) -> Path:
    """A small random Gemma 4 with towers for images and sound, as Transformers saves it."""
    torch.manual_seed(0)
    whole = Gemma4ForConditionalGeneration(
        Gemma4Config(text_config=TEXT, vision_config=VISION, audio_config=AUDIO, **IDS)
    )
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.08)
    whole.save_pretrained(out)
    (out / "tokenizer.json").write_text(json.dumps(train_tokenizer()), encoding="utf-8")
    return out


def test_the_language_model_computes_what_the_whole_model_does(tmp_path: Path) -> None:
    model = write_multimodal(tmp_path / "m")
    weights = load_file(model / "model.safetensors")
    # Published files hold keys and values that no layer uses, and Transformers leaves them out.
    shared = "model.language_model.layers.4.self_attn"
    extra = {f"{shared}.{name}.weight": torch.zeros(16, 64) for name in ("k_proj", "v_proj")}
    extra[f"{shared}.k_norm.weight"] = torch.zeros(16)
    save_file({**weights, **extra}, model / "model.safetensors", {"format": "pt"})
    source = open_source(str(model), Cache(tmp_path / "cache", [], []))
    assert source.family.architecture == "Gemma4ForCausalLM"
    assert source.note is not None
    assert "only its language model" in source.note
    assert not [name for name in source.tensors if ".layers.4.self_attn.k_" in name]
    ids = torch.arange(60)[None] * 7 % 400
    whole: Any = Gemma4ForConditionalGeneration.from_pretrained(model, dtype=torch.float32).eval()
    taken = AutoModelForCausalLM.from_pretrained(source.directory, dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.equal(taken(ids).logits, whole(input_ids=ids).logits)
    assert "vision_config" not in source.config


def test_both_embeddings_lose_the_same_rows(tmp_path: Path) -> None:
    before = write_checkpoint(tmp_path / "m", "gemma4_text", dtype=torch.float32, **DOUBLE_WIDE)
    after = prune_to(before, tmp_path / "out", vocab_size=300, method="random")
    kept = read_plan(after / "plan.json").kept_token_ids
    old, new = load_file(before / "model.safetensors"), load_file(after / "model.safetensors")
    for name in ("model.embed_tokens.weight", "model.embed_tokens_per_layer.weight"):
        assert torch.equal(new[name], old[name][kept])
    config = json.loads((after / "config.json").read_text(encoding="utf-8"))
    assert (config["vocab_size"], config["vocab_size_per_layer_input"]) == (300, 300)


def test_a_layer_twice_as_wide_keeps_twice_as_many_channels(tmp_path: Path) -> None:
    before = write_checkpoint(tmp_path / "m", "gemma4_text", **DOUBLE_WIDE)
    plan = plan_for(before, tmp_path, intermediate_size=64, calibration_tokens=128)
    assert [len(row) for row in plan.kept_channels] == [64, 64, 64, 128, 128, 128]
    assert max(map(max, plan.kept_channels[:3])) < 96 <= max(map(max, plan.kept_channels[3:])) < 192
    source = open_directory(before, name="m", origin="m")
    check_plan(plan, source)
    plan.kept_channels[4].pop()
    with pytest.raises(PlanMismatchError, match="127 channels in layer 4, expected 128"):
        check_plan(plan, source)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"vocab_size_per_layer_input": 400}, "vocab_size_per_layer_input"),
        ({"per_layer_config": {"0": {"intermediate_size": 48}}}, "intermediate_size"),
    ],
)
def test_a_layout_that_cannot_be_cut_is_refused(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    model = write_checkpoint(tmp_path / "m", "gemma4_text", **DOUBLE_WIDE)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
    with pytest.raises(UnsupportedArchitectureError, match=named):
        open_directory(model, name="m", origin="m")


def test_a_mixture_of_experts_is_refused(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m", "gemma4_text", **DOUBLE_WIDE, num_experts=4, enable_moe_block=True)
    with pytest.raises(MixtureOfExpertsError, match="num_experts"):
        open_directory(model, name="m", origin="m")
