"""Which ONNX options go together, with each other and with a model."""

from __future__ import annotations

from typing import Any

import pytest

from compact.architectures.table import family_of
from compact.base.errors import (
    CompactEdgeError,
    DamagedFileError,
    MixtureOfExpertsError,
    QuantizedCheckpointError,
    UnsupportedArchitectureError,
    UsageError,
)
from exporters.onnx.types import ALGORITHMS, BLOCK_SIZES, ONNX_TYPES, OnnxOptions, check_onnx, grid, onnx_options
from tests.checkpoints import model_config
from tests.family_models import LLAMA3_ROPE, ONNX_CASES, ONNX_NAMES, VARIANTS, YARN_ROPE


def one_line(error: CompactEdgeError) -> bool:
    return "\n" not in error.message and len(error.message) < 200 and "\n" not in (error.hint or "")


def test_defaults() -> None:
    assert onnx_options("fp32") == OnnxOptions("fp32", "cpu", None, 32, None, None)
    assert onnx_options("int4").algo_config == "default_last"
    assert onnx_options("int8").algo_config == "default"
    assert onnx_options("fp16", max_length=512).max_length == 512
    assert {name: row.bits for name, row in ONNX_TYPES.items()} == {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4}


@pytest.mark.parametrize(
    ("quant", "more", "hint"),
    [
        ("int3", {}, "int"),
        ("FP16", {}, "fp16"),
        ("Q4_K_M", {}, "one of: fp32"),
        ("int4", {"algo_config": "kquant"}, "k_quant"),
        ("int4", {"execution_provider": "cida"}, "cuda"),
        ("int4", {"block_size": 48}, "one of: 16, 32"),
        ("int4", {"block_size": 0}, "one of: 16, 32"),
        ("int4", {"accuracy_level": 5}, "0 to 4"),
        ("int4", {"max_length": 0}, "1 or more"),
        ("fp16", {"algo_config": "rtn"}, "int4 or int8"),
        ("fp32", {"block_size": 32}, "int4 or int8"),
        ("fp32", {"accuracy_level": 0}, "int4 or int8"),
        ("int8", {"algo_config": "rtn_last"}, "use rtn"),
        ("int8", {"algo_config": "default_mixed"}, "use default"),
        ("fp32", {"execution_provider": "cuda"}, "fp16"),
        ("fp32", {"execution_provider": "dml"}, "fp16"),
    ],
)
def test_wrong_options_are_refused_with_the_next_step(quant: str, more: dict[str, Any], hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        onnx_options(quant, **more)
    assert one_line(caught.value)
    assert hint in str(caught.value.hint)


def test_grid() -> None:
    assert grid(onnx_options("fp16")) == 1
    assert grid(onnx_options("int4")) == 32
    assert grid(onnx_options("int8", algo_config="k_quant", block_size=64)) == 64
    assert grid(onnx_options("int4", algo_config="k_quant_last", block_size=64)) == 128


@pytest.mark.parametrize(("architecture", "variant"), ONNX_CASES, ids=ONNX_NAMES)
def test_every_family_is_accepted(architecture: str, variant: str) -> None:
    family = family_of({"architectures": [architecture]}, "here")
    config = model_config(family.model_type, 300, **VARIANTS[architecture][variant])
    for quant in ONNX_TYPES:
        assert check_onnx(onnx_options(quant), config, "here") is family


@pytest.mark.parametrize(
    ("family", "changes", "kind", "named"),
    [
        ("llama", {"architectures": ["FalconForCausalLM"]}, UnsupportedArchitectureError, "Falcon"),
        ("llama", {"num_local_experts": 8}, MixtureOfExpertsError, "num_local_experts"),
        ("llama", {"quantization_config": {"quant_method": "awq"}}, QuantizedCheckpointError, "quantised"),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, UnsupportedArchitectureError, "dynamic"),
        ("llama", {"rope_scaling": {"type": "longrope"}}, UnsupportedArchitectureError, "longrope"),
        ("llama", {"rope_scaling": "yarn"}, DamagedFileError, "rope_scaling"),
        ("llama", {"partial_rotary_factor": 0.5}, UnsupportedArchitectureError, "partial_rotary_factor"),
        (
            "llama",
            {"rope_scaling": {**YARN_ROPE, "partial_rotary_factor": 0.5}},
            UnsupportedArchitectureError,
            "partial",
        ),
        (
            "gemma3_text",
            {"rope_parameters": {"full_attention": {"rope_type": "longrope"}}},
            UnsupportedArchitectureError,
            "longrope",
        ),
        ("gemma3_text", {"use_bidirectional_attention": True}, UnsupportedArchitectureError, "bidirectional"),
        ("llama", {"hidden_act": "quick_gelu"}, UnsupportedArchitectureError, "quick_gelu"),
        ("llama", {"head_dim": 24}, UnsupportedArchitectureError, "head_dim = 24"),
        ("llama", {"hidden_size": "64"}, DamagedFileError, "hidden_size"),
        ("llama", {"num_hidden_layers": 0}, DamagedFileError, "num_hidden_layers"),
        ("llama", {"num_key_value_heads": 3}, DamagedFileError, "key-value heads"),
    ],
)
def test_models_that_no_graph_can_hold(
    family: str, changes: dict[str, Any], kind: type[CompactEdgeError], named: str
) -> None:
    with pytest.raises(kind, match=named) as caught:
        check_onnx(onnx_options("fp32"), model_config(family, 300, **changes), "here")
    assert one_line(caught.value)


def test_what_a_graph_can_hold_and_a_gguf_cannot() -> None:
    for changes in (
        {"rope_scaling": {**YARN_ROPE, "attention_factor": 1.3, "truncate": False}},
        {"rope_scaling": LLAMA3_ROPE},
        {"hidden_act": "gelu"},
    ):
        check_onnx(onnx_options("fp32"), model_config("qwen3", 300, **changes), "here")
    check_onnx(onnx_options("fp16", execution_provider="dml"), model_config("llama", 300, head_dim=24), "here")


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name.startswith("k_quant")])
def test_k_quant_needs_an_even_number_of_blocks(name: str) -> None:
    # Rows of 576 (hidden, heads) and 1536 (inner) as in SmolLM2-135M: 36, 18, 9, 5 and 3 blocks of 576.
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    config = model_config("llama", 300, **sizes)
    accepted = []
    for size in BLOCK_SIZES:
        options = onnx_options("int4", algo_config=name, block_size=size)
        try:
            check_onnx(options, config, "here")
        except UsageError as error:
            assert one_line(error)
            assert "block_size 16 or 32" in str(error.hint)
        else:
            accepted.append(size)
    assert accepted == [16, 32]
    check_onnx(onnx_options("int8", algo_config="k_quant", block_size=64), config, "here")
