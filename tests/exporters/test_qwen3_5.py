"""Qwen3.5 as GGUF: what of its linear attention is refused by name, and what llama.cpp's quantizer leaves as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compact.architectures.table import family_of
from compact.base.errors import DamagedFileError, UnsupportedArchitectureError
from compact.checkpoints.gguf_file import read_gguf
from compact.forward.load import load_model
from compact.sources.from_gguf import read_gguf_checkpoint
from compact_edge.cli import main as cli
from exporters.gguf_writer.write import write_gguf
from exporters.llamacpp.header import read_header
from exporters.llamacpp.imatrix_torch import collect
from exporters.llamacpp.quant_types import predict_types
from exporters.llamacpp.quantize import quantize_gguf
from exporters.onnx.types import check_onnx, onnx_options
from tests.checkpoints import write_checkpoint
from tests.family_models import VARIANTS

MORE_VALUES = VARIANTS["Qwen3_5ForCausalLM"]["more value heads"]
ROPE = VARIANTS["Qwen3_5ForCausalLM"]["tied"]["rope_parameters"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"linear_value_head_dim": 8}, "linear_value_head_dim"),
        (
            {"linear_num_key_heads": 3, "linear_num_value_heads": 4},
            "linear attention has 4 value heads, which is not a multiple of its 3",
        ),
        ({"attn_output_gate": False}, "attn_output_gate"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_parameters": {**ROPE, "rope_type": "linear", "factor": 2.0}}, "partial_rotary_factor"),
        ({"rope_parameters": {**ROPE, "partial_rotary_factor": 3}}, "partial_rotary_factor"),
        # Pairs 3 and up would follow an axis on which a text has no position.
        ({"rope_parameters": {**ROPE, "mrope_section": [1, 1, 2]}}, "mrope_section"),
        ({"rope_parameters": {**ROPE, "mrope_section": [4]}}, "mrope_section"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    model = write_checkpoint(tmp_path / "m", "qwen3_5_text")
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
    with pytest.raises((UnsupportedArchitectureError, DamagedFileError), match=named):
        write_gguf(model, tmp_path / "model.gguf", "F32")
    assert not (tmp_path / "model.gguf").exists()


def test_a_gguf_is_refused_as_a_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_gguf(write_checkpoint(tmp_path / "m", "qwen3_5_text"), tmp_path / "m.gguf", "F32")
    (tmp_path / "back").mkdir()
    with pytest.raises(UnsupportedArchitectureError, match="Qwen3_5ForCausalLM cannot be a source"):
        read_gguf_checkpoint(tmp_path / "m.gguf", tmp_path / "back")
    assert list((tmp_path / "back").iterdir()) == []
    assert cli.run(["inspect", str(tmp_path / "m.gguf")]) == 65
    assert "start from the Hugging Face checkpoint" in capsys.readouterr().err


def test_an_importance_belongs_to_the_columns_of_the_file(tmp_path: Path) -> None:
    """Squares of weights times squares of their inputs, summed by row: the same for the checkpoint and for the file."""
    model = write_checkpoint(tmp_path / "m", "qwen3_5_text", dtype=torch.float32, **MORE_VALUES)
    write_gguf(model, tmp_path / "m.gguf", "F32")
    ids = list(range(40))
    family = family_of({"architectures": ["Qwen3_5ForCausalLM"]}, "here")
    means = collect(model, [ids], family=family, device="cpu").means["blk.0.ssm_out.weight"]
    file = read_gguf(tmp_path / "m.gguf")
    tensor = file.tensors["blk.0.ssm_out.weight"]
    written = file.read_rows(tensor, 0, tensor.shape[0]).reshape(-1).view("<f4").reshape(tensor.shape)
    loaded = load_model(model)
    seen: list[torch.Tensor] = []
    projection = loaded.model.layers[0].linear_attn.out_proj
    projection.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0][0]))
    with torch.no_grad():
        loaded(torch.tensor([ids]))
    inputs = seen[0].double().square().mean(dim=0).numpy()
    expected = projection.weight.detach().double().square().numpy() @ inputs
    np.testing.assert_allclose(np.square(written.astype(np.float64)) @ means, expected, rtol=1e-5)
    assert not np.allclose(np.square(written.astype(np.float64)) @ inputs, expected, rtol=1e-2)


def test_onnx_is_refused_by_name(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m", "qwen3_5_text")
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    with pytest.raises(UnsupportedArchitectureError, match="Qwen3_5ForCausalLM cannot be written as ONNX"):
        check_onnx(onnx_options("int4"), config, "config.json")


@pytest.mark.parametrize("quant", ["Q4_K_M", "Q4_0"])
def test_the_types_of_a_quantised_file_are_known_before(tmp_path: Path, quant: str) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 256, "linear_key_head_dim": 64, "linear_value_head_dim": 64}
    write_gguf(write_checkpoint(tmp_path / "m", "qwen3_5_text", **sizes), tmp_path / "m.gguf", "F32")
    quantize_gguf(tmp_path / "m.gguf", tmp_path / "small.gguf", quant)
    written = {tensor.name: tensor.type for tensor in read_header(tmp_path / "small.gguf").tensors}
    assert written == predict_types(read_header(tmp_path / "m.gguf").model_shape("m.gguf"), quant)
    assert written["blk.0.ssm_conv1d.weight"] == "F32"
