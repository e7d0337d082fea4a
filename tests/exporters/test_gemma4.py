"""Gemma 4 as GGUF: the real tokenizer with its merges, the second embedding in the gate, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from compact.base.errors import DamagedFileError, UnsupportedArchitectureError
from compact.checkpoints.gguf_file import read_gguf
from compact.sources.from_gguf import read_gguf_checkpoint
from compact_edge.cli import main as cli
from exporters.gguf.low_memory_checks import check_tensors
from exporters.gguf.parity import check_artifact
from exporters.gguf_writer.write import write_gguf
from exporters.llamacpp.header import read_header
from exporters.llamacpp.quant_types import predict_types
from exporters.llamacpp.quantize import quantize_gguf
from exporters.onnx.types import check_onnx, onnx_options
from tests.checkpoints import TEXTS, write_checkpoint
from tests.compact.pruned_checkpoints import around_tokenizer, prune_to
from tests.family_models import VARIANTS

DOUBLE_WIDE = VARIANTS["Gemma4ForCausalLM"]["double-wide FFN"]
ROPE = DOUBLE_WIDE["rope_parameters"]
SWA, FULL = "sliding_attention", "full_attention"


@pytest.mark.slow
def test_the_real_tokenizer_pruned(data_dir: Path, tmp_path: Path) -> None:
    """262,144 tokens to 20,500: the whole gate, llama.cpp with the tokenizer's own merges."""
    small = {"num_kv_shared_layers": 3, "hidden_size_per_layer_input": 8, "head_dim": 8, "global_head_dim": 16}
    before = around_tokenizer(data_dir / "tokenizers" / "gemma4", tmp_path / "m", "gemma4_text", **small)
    after = prune_to(before, tmp_path / "out", vocab_size=20500, method="random")
    write_gguf(after, tmp_path / "pruned.gguf", "F32")
    values = read_gguf(tmp_path / "pruned.gguf").values
    assert values["tokenizer.ggml.model"] == "gemma4"
    assert len(values["tokenizer.ggml.tokens"]) == 20500
    report = check_artifact(after, tmp_path / "pruned.gguf", "F32", TEXTS, unpruned=before, baseline_kl=None)
    assert [check.detail for check in report.checks if not check.passed] == []
    tokenizer = report.checks[0]
    assert tokenizer.figures["different"] == tokenizer.figures["runtime_own"] == 0
    back = tmp_path / "back"
    back.mkdir()
    read_gguf_checkpoint(tmp_path / "pruned.gguf", back)
    merges = [json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["merges"] for folder in (after, back)]
    assert merges[0] == merges[1]


def test_the_gate_sees_a_wrong_row_of_the_second_embedding(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m", "gemma4_text", **DOUBLE_WIDE)
    write_gguf(model, tmp_path / "m.gguf", "BF16")
    assert check_tensors(model, tmp_path / "m.gguf").passed
    weights = load_file(model / "model.safetensors")
    name = "model.embed_tokens_per_layer.weight"
    save_file({**weights, name: weights[name].roll(1, 0)}, model / "model.safetensors", {"format": "pt"})
    check = check_tensors(model, tmp_path / "m.gguf")
    assert check.passed is False
    assert "per_layer_token_embd" in check.detail


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        # Transformers takes the last sliding layer of its kind, llama.cpp the layer at a fixed place.
        ({"layer_types": [SWA, FULL, FULL, SWA, SWA, FULL]}, "keys and values of layer 0"),
        ({"layer_types": [FULL, SWA, SWA, SWA, SWA, FULL]}, "layer 0"),
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention"),
        ({"hidden_activation": "gelu"}, "gelu"),
        ({"rope_parameters": {**ROPE, FULL: {"rope_type": "default", "rope_theta": 1e6}}}, "'default'"),
        ({"rope_parameters": {**ROPE, FULL: {**ROPE[FULL], "factor": 8.0}}}, "with factor 8"),
        ({"rope_parameters": {**ROPE, SWA: {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}}, "'linear'"),
        ({"rope_parameters": {**ROPE, FULL: {**ROPE[FULL], "partial_rotary_factor": 2}}}, "partial_rotary_factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope settings"),
        ({"per_layer_config": {"2": {"head_dim": 32}, "5": {"head_dim": 64}}}, "differ in their heads"),
        ({"num_kv_shared_layers": 6}, "num_kv_shared_layers"),
        ({"sliding_window": None}, "sliding_window"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    model = write_checkpoint(tmp_path / "m", "gemma4_text", **DOUBLE_WIDE)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
    with pytest.raises((UnsupportedArchitectureError, DamagedFileError), match=named):
        write_gguf(model, tmp_path / "model.gguf", "F32")
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.parametrize("quant", ["Q4_K_M", "Q4_0"])
def test_the_types_of_a_quantised_file_are_known_before(tmp_path: Path, quant: str) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 256, "hidden_size_per_layer_input": 256}
    model = write_checkpoint(tmp_path / "m", "gemma4_text", **{**DOUBLE_WIDE, **sizes})
    write_gguf(model, tmp_path / "m.gguf", "F32")
    quantize_gguf(tmp_path / "m.gguf", tmp_path / "small.gguf", quant)
    written = {tensor.name: tensor.type for tensor in read_header(tmp_path / "small.gguf").tensors}
    assert written == predict_types(read_header(tmp_path / "m.gguf").model_shape("m.gguf"), quant)
    assert written["per_layer_token_embd.weight"] not in ("F32", "F16")


def test_onnx_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_checkpoint(tmp_path / "m", "gemma4_text", dtype=torch.float32, **DOUBLE_WIDE)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    with pytest.raises(UnsupportedArchitectureError, match="Gemma4ForCausalLM cannot be written as ONNX"):
        check_onnx(onnx_options("fp32"), config, "config.json")
    line = ["export", str(model), "--format", "onnx", "--quant", "fp32", "--out", str(tmp_path / "out")]
    assert cli.run(line) == 65
    assert "export this model to GGUF" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
