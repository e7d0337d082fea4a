"""Names of tensors: what Transformers loads is loaded with the same values, and wrappers are refused by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3ForConditionalGeneration

from compact.base.errors import DamagedFileError, UnsupportedArchitectureError
from tests.checkpoints import random_model, write_checkpoint
from tests.compact.multimodal_models import write_multimodal
from tests.compact.sources.unusual_folders import change_config, change_weights, logits, opened, refusal, rename

Rename = Callable[[str], str]


@pytest.mark.parametrize("named", [["LlamaModel"], ["FSDPLlamaForCausalLM"], "LlamaForCausalLM", None])
def test_the_class_that_model_type_chooses(tmp_path: Path, named: object) -> None:
    """The base class saves its own name; `AutoModelForCausalLM` looks at `model_type` alone."""
    model = write_checkpoint(tmp_path / "m")
    expected = logits(model)
    change_config(model, architectures=named)
    assert torch.equal(logits(model), expected)
    source = opened(model, tmp_path)
    assert source.config["architectures"] == ["LlamaForCausalLM"]
    assert torch.equal(logits(source.directory), expected)


def test_another_class_than_model_type_chooses(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m")
    change_config(model, architectures=["MistralForCausalLM"])
    refusal(model, tmp_path, DamagedFileError, "config.json: architectures is MistralForCausalLM", "model_type")
    change_config(model, architectures=["LlamaForCausalLM"], model_type=None)
    refusal(model, tmp_path, DamagedFileError, "config.json: no model_type", '"model_type": "llama"')
    change_config(model, architectures=["LlamaForSequenceClassification"], model_type="llama")
    refusal(model, tmp_path, UnsupportedArchitectureError, "LlamaForSequenceClassification", "supported: ")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("own", [lambda name: name.removeprefix("model."), lambda name: f"model.{name}"])
def test_the_prefix_of_the_base_class(tmp_path: Path, tied: bool, own: Rename) -> None:
    model = write_checkpoint(tmp_path / "m", tie_word_embeddings=tied)
    expected = logits(model)
    rename(model, own)
    source = opened(model, tmp_path)
    assert torch.equal(logits(model), expected)  # what Transformers makes of it
    assert torch.equal(logits(source.directory), expected)
    assert "model.embed_tokens.weight" in source.tensors
    assert source.note is not None and "is read as" in source.note


def test_the_prefix_of_the_multimodal_model(tmp_path: Path) -> None:
    """Qwen3.5: published weights of the language model keep the names of the multimodal one."""
    model = random_model(tmp_path / "m", "Qwen3_5ForCausalLM")
    expected = logits(model)
    rename(model, lambda name: name.replace("model.", "model.language_model.", 1))
    change_weights(model, lambda weights: {**weights, "model.visual.blocks.0.norm1.weight": torch.zeros(4)})
    assert torch.equal(logits(model), expected)
    assert torch.equal(logits(opened(model, tmp_path).directory), expected)


@pytest.mark.parametrize(
    "own",
    [
        lambda name: name.replace("language_model.model.", "language_model."),
        lambda name: name.replace("language_model.model.", "model.language_model.model."),
        lambda name: f"model.{name}",
        lambda name: "lm_head.weight" if name.endswith("embed_tokens.weight") else name,
    ],
)
def test_names_of_a_multimodal_model(tmp_path: Path, own: Rename) -> None:
    model = write_multimodal(tmp_path / "m")
    rename(model, own)
    whole = Gemma3ForConditionalGeneration.from_pretrained(model, dtype=torch.float32)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(logits(opened(model, tmp_path).directory), whole(input_ids=ids).logits)


def test_a_wrapper_of_a_multimodal_model(tmp_path: Path) -> None:
    model = write_multimodal(tmp_path / "m")
    rename(model, lambda name: f"_orig_mod.{name}")
    refusal(model, tmp_path, UnsupportedArchitectureError, "_orig_mod.", "model._orig_mod", "save_pretrained")


def test_a_head_without_its_embedding(tmp_path: Path) -> None:
    """Transformers ties both ways."""
    model = write_checkpoint(tmp_path / "m")
    expected = logits(model)
    rename(model, lambda name: "lm_head.weight" if name == "model.embed_tokens.weight" else name)
    source = opened(model, tmp_path)
    assert source.tied
    assert torch.equal(logits(model), expected)
    assert torch.equal(logits(source.directory), expected)


def test_a_head_that_differs_from_its_embedding(tmp_path: Path) -> None:
    """Transformers then uses both, whatever config.json says."""
    model = write_checkpoint(tmp_path / "m")
    tied = logits(model)
    change_weights(model, lambda weights: {**weights, "lm_head.weight": weights["model.embed_tokens.weight"].flip(0)})
    source = opened(model, tmp_path)
    assert not source.tied
    assert torch.equal(logits(source.directory), logits(model))
    assert not torch.equal(logits(model), tied)


def test_an_untied_head_that_is_missing(tmp_path: Path) -> None:
    """Transformers would fill it with random values."""
    model = write_checkpoint(tmp_path / "m", tie_word_embeddings=False)
    change_weights(model, lambda weights: {n: t for n, t in weights.items() if n != "lm_head.weight"})
    refusal(model, tmp_path, DamagedFileError, "'lm_head.weight' is missing", "tie_word_embeddings to true")
    change_config(model, tie_word_embeddings=True)
    assert opened(model, tmp_path).tied


@pytest.mark.parametrize(
    ("wrapper", "own"),
    [
        ("_orig_mod.", lambda name: f"_orig_mod.{name}"),
        ("module.", lambda name: f"module.{name}"),
        ("base_model.model.", lambda name: f"base_model.model.{name}"),
        ("policy.", lambda name: f"policy.{name}"),
        ("model.language_model.", lambda name: name.replace("model.", "model.language_model.", 1)),
        ("_orig_mod.", lambda name: name.replace("layers.0.", "layers.0._orig_mod.")),
        ("_fsdp_wrapped_module.", lambda name: name.replace("layers.0.", "layers.0._fsdp_wrapped_module.")),
        ("_orig_mod.", lambda name: f"module._orig_mod.{name}"),
        ("_orig_mod.", lambda name: f"_orig_mod.{name.replace('layers.1.', 'layers.1._orig_mod.')}"),
    ],
)
def test_a_wrapper_is_named_and_the_hint_helps(tmp_path: Path, wrapper: str, own: Rename) -> None:
    model = write_checkpoint(tmp_path / "m")
    expected = logits(model)
    rename(model, own)
    error = refusal(model, tmp_path, DamagedFileError, "model.safetensors", f"{wrapper!r}", "save_pretrained")
    assert error.hint is not None
    call = re.search(r"AutoModelForCausalLM.*$", error.hint)
    assert call is not None
    eval(call[0], {"AutoModelForCausalLM": AutoModelForCausalLM, "NEW_FOLDER": str(tmp_path / "new")})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "new" / name).write_bytes((model / name).read_bytes())
    source = opened(tmp_path / "new", tmp_path)
    assert source.note is None
    assert torch.equal(logits(source.directory), expected)


def test_an_adapter_that_is_not_merged(tmp_path: Path) -> None:
    """Transformers would ignore it, so the result would be the model before its fine-tuning."""
    model = write_checkpoint(tmp_path / "m")
    adapter = {"model.layers.0.self_attn.q_proj.lora_A.default.weight": torch.zeros(4, 64)}
    change_weights(model, lambda weights: {**weights, **adapter})
    refusal(model, tmp_path, DamagedFileError, "model.safetensors", "LoRA", "merge_and_unload")
    rename(model, lambda name: f"base_model.model.{name.replace('q_proj.', 'q_proj.base_layer.')}")
    change_weights(
        model, lambda weights: {**weights, "base_model.model.model.layers.0.self_attn.q_proj.lora_A.x": torch.zeros(4)}
    )
    refusal(model, tmp_path, DamagedFileError, "model.safetensors", "LoRA", "merge_and_unload")


def test_two_names_of_one_tensor(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m")
    change_weights(model, lambda weights: {**weights, "norm.weight": weights["model.norm.weight"] + 1})
    refusal(model, tmp_path, DamagedFileError, "'model.norm.weight' and 'norm.weight'", "remove")


def test_a_head_for_rewards_is_left_out(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m")
    expected = logits(model)
    change_weights(model, lambda weights: {**weights, "v_head.summary.weight": torch.zeros(1, 64)})
    source = opened(model, tmp_path)
    assert source.note is not None and "v_head.summary.weight" in source.note
    assert torch.equal(logits(model), expected)
    assert torch.equal(logits(source.directory), expected)


def test_names_of_other_formats(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m")
    change_weights(model, lambda weights: {**weights, "model.layers.0.foo.weight": torch.zeros(2)})
    refusal(model, tmp_path, UnsupportedArchitectureError, "model.safetensors", "foo", "save it again")
    change_weights(model, lambda weights: {n.replace("q_proj", "qkv_proj"): t for n, t in weights.items()})
    refusal(model, tmp_path, DamagedFileError, "q_proj.weight' is missing", "random values")
    rename(model, lambda name: name.replace("model.", "").replace("self_attn.qkv_proj", "attention.wq"))
    refusal(
        model,
        tmp_path,
        DamagedFileError,
        "attention.wq",
        "maker's original format",
        "Hugging Face version",
    )
