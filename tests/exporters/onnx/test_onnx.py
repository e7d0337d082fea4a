"""The ONNX graph computes what Transformers does: families, settings, providers, quantisers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("onnxruntime_genai", reason="the extra `onnx` is not installed")

import onnx

import exporters.onnx.write
from compact.architectures.table import family_of
from compact.base.errors import (
    UnsupportedArchitectureError,
    UsageError,
)
from exporters.onnx import builder as onnx_builder
from exporters.onnx.types import ALGORITHMS, EXECUTION_PROVIDERS, onnx_options
from tests.checkpoints import copy_checkpoint, random_model
from tests.compact.pruned_checkpoints import prune_to
from tests.exporters.family_checkpoints import checkpoint
from tests.exporters.onnx_graphs import difference, mean_kl, reference, write_here
from tests.family_models import _GEMMA, _GRANITE, LLAMA3_ROPE, ONNX_CASES, ONNX_NAMES, YARN_ROPE

FP32 = onnx_options("fp32")
LIMIT = 1e-4
LINEAR = {"rope_type": "linear", "factor": 4.0}
LLAMA3 = {**LLAMA3_ROPE, "original_max_position_embeddings": 64}
WINDOW = {"use_sliding_window": True, "sliding_window": 24}
SHARP = {"rope_theta": 1e6, **YARN_ROPE}


@pytest.mark.parametrize(("architecture", "variant"), ONNX_CASES, ids=ONNX_NAMES)
def test_pruned_models_compute_what_transformers_does(tmp_path: Path, architecture: str, variant: str) -> None:
    before = checkpoint(tmp_path / "m", architecture, variant)
    after = prune_to(before, tmp_path / "pruned", vocab_size=320, intermediate_size=32, calibration_tokens=128)
    write_here(after, tmp_path / "out", FP32)
    assert difference(tmp_path / "out", reference(after)) < LIMIT


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("LlamaForCausalLM", {"rope_scaling": YARN_ROPE}),
        ("LlamaForCausalLM", {"rope_scaling": {**YARN_ROPE, "attention_factor": 1.3}}),
        ("LlamaForCausalLM", {"rope_scaling": {**YARN_ROPE, "truncate": False}}),
        ("LlamaForCausalLM", {"rope_scaling": {**YARN_ROPE, "mscale": 1.0, "mscale_all_dim": 0.5}}),
        ("LlamaForCausalLM", {"rope_scaling": {**YARN_ROPE, "beta_fast": 16, "beta_slow": 2}}),
        ("LlamaForCausalLM", {"rope_scaling": LINEAR}),
        ("LlamaForCausalLM", {"rope_scaling": LLAMA3}),
        ("LlamaForCausalLM", {"hidden_act": "gelu"}),
        ("LlamaForCausalLM", {"hidden_act": "relu2"}),
        # Keys that Transformers has no use for in a Llama, and the builder would read.
        ("LlamaForCausalLM", {"hidden_activation": "gelu", "sliding_window": 24, "final_logit_softcapping": 3.0}),
        ("LlamaForCausalLM", {"attn_logit_softcapping": 2.0, "layer_types": ["sliding_attention"] * 2}),
        ("MistralForCausalLM", {"sliding_window": 24, "tie_word_embeddings": True}),
        ("MistralForCausalLM", {"rope_scaling": YARN_ROPE}),
        ("GraniteForCausalLM", {"head_dim": 32, "rope_scaling": LINEAR}),
        ("GraniteForCausalLM", dict.fromkeys(_GRANITE)),
        ("Qwen2ForCausalLM", {**WINDOW, "max_window_layers": 1}),
        ("Qwen2ForCausalLM", {"sliding_window": 24, "head_dim": 32}),
        ("Qwen3ForCausalLM", {**WINDOW, "layer_types": ["full_attention", "sliding_attention"]}),
        ("Qwen3ForCausalLM", {"rope_scaling": {**YARN_ROPE, "attention_factor": 1.3}}),
        ("SmolLM3ForCausalLM", WINDOW),
        ("SmolLM3ForCausalLM", {"no_rope_layers": [1, 0, 1, 0], "rope_scaling": LINEAR}),
        ("Gemma2ForCausalLM", {"hidden_size": 72, "query_pre_attn_scalar": 144, "attn_logit_softcapping": None}),
        ("Gemma2ForCausalLM", {"tie_word_embeddings": False, "rope_scaling": LINEAR, "hidden_activation": "gelu"}),
        ("Gemma3ForCausalLM", {"hidden_size": 72, "query_pre_attn_scalar": 168, "attn_logit_softcapping": 2.0}),
        (
            "Gemma3ForCausalLM",
            {
                "rope_theta": None,
                "rope_parameters": {"full_attention": SHARP, "sliding_attention": {"rope_theta": 1e4, **LINEAR}},
            },
        ),
        ("Gemma3ForCausalLM", {**_GEMMA, "rope_parameters": {"rope_type": "linear", "factor": 8.0}}),
        ("Gemma3ForCausalLM", {"layer_types": ["sliding_attention"] * 7}),
    ],
)
def test_settings_reach_the_graph_as_transformers_reads_them(
    tmp_path: Path, architecture: str, changes: dict[str, Any]
) -> None:
    model = random_model(tmp_path / "m", architecture, **changes)
    write_here(model, tmp_path / "out", FP32)
    assert difference(tmp_path / "out", reference(model)) < LIMIT


@pytest.mark.parametrize("provider", EXECUTION_PROVIDERS)
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "SmolLM3ForCausalLM", "Gemma3ForCausalLM"])
def test_graphs_for_other_providers_compute_the_same(tmp_path: Path, architecture: str, provider: str) -> None:
    model = random_model(tmp_path / "m", architecture)
    expected = reference(model)
    for quant, limit in (("fp16", 1e-4), ("int8", 1e-2)):
        folder = write_here(model, tmp_path / quant, onnx_options(quant, execution_provider=provider))
        assert mean_kl(folder, expected) < limit, quant


@pytest.mark.parametrize("stated", ["bfloat16", "float16", None])
def test_float32_weights_keep_their_bits_whatever_the_config_states(
    tmp_path: Path, tied_model: Path, stated: str
) -> None:
    model = copy_checkpoint(tied_model, tmp_path / "m", dtype=stated, torch_dtype="bfloat16")
    write_here(model, tmp_path / "out", FP32)
    assert difference(tmp_path / "out", reference(model)) < LIMIT


def test_weights_of_several_dtypes(tmp_path: Path, tied_model: Path) -> None:
    model = copy_checkpoint(tied_model, tmp_path / "m")
    weights = load_file(model / "model.safetensors")
    mixed = {name: tensor.bfloat16() if "mlp" in name else tensor for name, tensor in weights.items()}
    save_file(mixed, model / "model.safetensors", {"format": "pt"})
    write_here(model, tmp_path / "out", FP32)
    assert difference(tmp_path / "out", reference(model)) < LIMIT


@pytest.mark.parametrize("quant", ["fp32", "int8", "int4"])
def test_a_stored_head_wins_over_tied_embeddings(tmp_path: Path, tied_model: Path, quant: str) -> None:
    model = copy_checkpoint(tied_model, tmp_path / "m")
    weights = load_file(model / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].flip(0).contiguous() * 2
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    write_here(model, tmp_path / "out", onnx_options(quant))
    limit = {"fp32": 1e-9, "int8": 0.05, "int4": 1.0}[quant]
    assert mean_kl(tmp_path / "out", reference(model)) < limit


def large_floats(folder: Path, rows: int) -> list[str]:
    """Initializers that hold at least a float for every weight of the embedding."""
    graph = onnx.load(str(folder / "model.onnx"), load_external_data=False).graph
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    return [t.name for t in graph.initializer if t.data_type in floats and np.prod(t.dims) >= rows * 64]


@pytest.mark.parametrize("model", ["tied_model", "untied_model"])
@pytest.mark.parametrize(
    ("quant", "algorithm", "limit"),
    [("int4", name, 0.7) for name in ALGORITHMS] + [("int8", name, 0.005) for name in ("default", "rtn", "k_quant")],
)
def test_every_quantiser(
    tmp_path: Path, request: pytest.FixtureRequest, model: str, quant: str, algorithm: str, limit: float
) -> None:
    source: Path = request.getfixturevalue(model)
    folder = write_here(source, tmp_path / "out", onnx_options(quant, algo_config=algorithm))
    kl = mean_kl(folder, reference(source))
    assert 0 < kl < limit
    rows = json.loads((source / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    assert large_floats(folder, rows) == [], "embedding and head are integers"
    # Weights in the file: those of the checkpoint, the embedding of a tied model once.
    weights = sum(t.numel() for t in load_file(source / "model.safetensors").values())
    tables = 256 * 16 * 4
    bits = {"int8": 9.5, "int4": 5.5}[quant] + (4.0 if "_" in algorithm.removeprefix("k_") else 0.0)
    assert (folder / "model.onnx.data").stat().st_size < weights * bits / 8 + tables + 20_000


@pytest.mark.parametrize("quant", ["int8", "int4"])
@pytest.mark.parametrize("block", [16, 256])
@pytest.mark.parametrize("tied_too", [True, False], ids=["tied", "untied"])
def test_rows_that_are_no_whole_blocks(tmp_path: Path, quant: str, block: int, tied_too: bool) -> None:
    model = random_model(
        tmp_path / "m",
        "LlamaForCausalLM",
        hidden_size=72,
        head_dim=16,
        intermediate_size=100,
        tie_word_embeddings=tied_too,
    )
    write_here(model, tmp_path / "out", onnx_options(quant, block_size=block))
    assert mean_kl(tmp_path / "out", reference(model)) < {"int8": 0.01, "int4": 1.0}[quant]


def test_the_embedding_is_rounded_as_onnxruntime_does() -> None:
    rows = torch.tensor([[0.0, 1.0, -4.0, 2.0] * 4, [0.0] * 16, [0.5] * 16])
    packed, scales = onnx_builder.quantized_rows(rows, 4, 16)
    assert packed.shape == (3, 8)
    assert scales.squeeze().tolist() == [0.5, 0.0, -0.0625]
    low, high = (packed & 15).float() - 8, (packed >> 4).float() - 8
    back = torch.stack((low, high), -1).reshape(3, 16) * scales
    assert torch.equal(back, rows)
    packed, scales = onnx_builder.quantized_rows(torch.randn(5, 40), 8, 32)
    assert (packed.shape, scales.shape) == ((5, 64), (5, 2))


@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
def test_the_refusal_of_k_quant_is_exact(
    tmp_path: Path, tied_model: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = onnx_options("int4", algo_config="k_quant", block_size=block)
    try:
        write_here(tied_model, tmp_path / "out", options)
        refused = False
    except UsageError:
        refused = True
    config = json.loads((tied_model / "config.json").read_text(encoding="utf-8"))
    monkeypatch.setattr(exporters.onnx.write, "check_onnx", lambda *_: family_of(config, "here"))
    if not refused:
        assert mean_kl(tmp_path / "out", reference(tied_model)) < 1.0
        return
    with pytest.raises(UnsupportedArchitectureError, match="cannot reshape") as caught:
        write_here(tied_model, tmp_path / "out", options)
    assert "\n" not in caught.value.message
    assert not (tmp_path / "out").exists()
