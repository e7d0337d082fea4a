"""Predicted tensor types against what llama.cpp writes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import pytest

import exporters.llamacpp.quantize
from compact.base.errors import BudgetError, UsageError
from exporters.llamacpp.header import read_header
from exporters.llamacpp.quant_rules import ModelShape, TensorShape
from exporters.llamacpp.quant_types import (
    GGML_TYPES,
    QUANTS,
    ggml_type,
    grid,
    needing_imatrix,
    predict_types,
    quant_named,
    summarize,
)
from exporters.llamacpp.quantize import quantize_gguf
from tests.exporters.kept_quantizer import KeptQuantizer
from tests.exporters.small_gguf import random_gguf, random_imatrix, shapes

SMOL: dict[str, Any] = {
    "n_layer": 30,
    "hidden": 576,
    "n_ff": 1536,
    "n_head": 9,
    "n_head_kv": 3,
    "vocab": 49152,
    "tied": True,
}
FAST = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_1", "Q2_K", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K")
LOW = ("Q1_0", "Q2_0", "TQ1_0", "TQ2_0")


@pytest.fixture(autouse=True)
def one_child(kept_quantizer: KeptQuantizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporters.llamacpp.quantize.NativeChild", kept_quantizer)


def shape_of(arch: str = "llama", **sizes: Any) -> ModelShape:
    tensors = tuple(
        TensorShape(name, tuple(reversed(shape)), "F32" if len(shape) == 1 else "F16")
        for name, shape in shapes(**sizes)
    )
    return ModelShape(tensors, arch, sizes["n_layer"], sizes["n_head"], sizes["n_head_kv"])


def check(source: Path, target: Path, quant: str, *, with_imatrix: bool, **types: Any) -> None:
    """Quantise for real and compare every tensor's type with the prediction, and the size with the summary."""
    model = read_header(source).model_shape(str(source))
    matrix = random_imatrix(model) if with_imatrix else None
    quantize_gguf(source, target, quant, imatrix=matrix, **types)
    written = read_header(target)
    predicted = predict_types(model, quant, has_imatrix=with_imatrix, **types)
    assert {tensor.name: tensor.type for tensor in written.tensors} == predicted
    assert written.metadata["general.file_type"] == quant_named(quant).ftype
    total = summarize(model, quant, has_imatrix=with_imatrix, **types).total_bytes
    # Beside the tensors the file holds its head and the padding.
    assert 0 < target.stat().st_size - total < 32 * len(written.tensors) + 65536


@pytest.mark.parametrize("quant", [*FAST, *LOW])
def test_types_are_those_that_llama_cpp_writes(wide_gguf_file: Path, tmp_path: Path, quant: str) -> None:
    check(wide_gguf_file, tmp_path / "out.gguf", quant, with_imatrix=False)


@pytest.mark.parametrize("quant", ["Q4_0", "Q5_0", "IQ4_XS", "IQ4_NL"])
def test_types_with_an_importance_matrix(wide_gguf_file: Path, tmp_path: Path, quant: str) -> None:
    check(wide_gguf_file, tmp_path / "out.gguf", quant, with_imatrix=True)


@pytest.mark.parametrize(
    ("quant", "types"),
    [
        ("Q4_0", {"embedding_quant": "Q8_0"}),
        ("Q4_K_M", {"embedding_quant": "Q4_K", "output_quant": "F16"}),
        ("F16", {"embedding_quant": "Q8_0"}),
        ("Q4_K_M", {"output_quant": "Q5_K"}),
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_types_asked_for(tmp_path: Path, quant: str, types: dict[str, str], tied: bool) -> None:
    sizes: dict[str, Any] = {
        "n_layer": 2,
        "hidden": 256,
        "n_ff": 256,
        "n_head": 4,
        "n_head_kv": 2,
        "vocab": 64,
        "tied": tied,
    }
    check(random_gguf(tmp_path / "in.gguf", **sizes), tmp_path / "out.gguf", quant, with_imatrix=False, **types)


@pytest.mark.parametrize("hidden", [288, 272], ids=["multiple of 32", "multiple of 16"])
@pytest.mark.parametrize("quant", ["Q4_K_M", "Q4_0", "Q6_K", "Q2_K", "IQ4_XS", "Q8_0", "Q2_0", "TQ1_0", "TQ2_0"])
def test_types_where_rows_do_not_fit(tmp_path: Path, hidden: int, quant: str) -> None:
    sizes: dict[str, Any] = {
        "n_layer": 9,
        "hidden": hidden,
        "n_ff": 96,
        "n_head": 4,
        "n_head_kv": 4,
        "vocab": 64,
        "tied": True,
    }
    source = random_gguf(tmp_path / "in.gguf", most_rows=16, **sizes)
    check(source, tmp_path / "out.gguf", quant, with_imatrix=False)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "head"])
@pytest.mark.parametrize(
    "quant",
    [
        *("Q2_0", "TQ2_0", "IQ3_XXS", "Q3_K_L", "Q5_K_M"),
        # Their tables take llama.cpp seconds.
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("IQ1_S", "IQ2_M")),
    ],
)
def test_types_where_some_rows_fit(tmp_path: Path, quant: str, tied: bool) -> None:
    """As in SmolLM2: the FFN's way back fits blocks of 256, the rest blocks of 64."""
    sizes: dict[str, Any] = {"n_layer": 8, "hidden": 64, "n_ff": 256, "n_head": 4, "n_head_kv": 2, "vocab": 64}
    source = random_gguf(tmp_path / "in.gguf", tied=tied, most_rows=16, **sizes)
    check(source, tmp_path / "out.gguf", quant, with_imatrix=True)


def test_a_type_without_fallback_is_refused_where_rows_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q1_0 has blocks of 128 and llama.cpp knows no smaller type in its place; it says so only while it works."""
    sizes: dict[str, Any] = {"n_layer": 2, "hidden": 192, "n_ff": 128, "n_head": 4, "n_head_kv": 2, "vocab": 64}
    source = random_gguf(tmp_path / "in.gguf", tied=True, **sizes)
    target = tmp_path / "out.gguf"
    with pytest.raises(BudgetError, match=re.escape("rows of 192 weights are not a multiple of 128 (Q1_0)")):
        quantize_gguf(source, target, "Q1_0")
    monkeypatch.setattr(exporters.llamacpp.quantize, "predict_types", lambda *_args, **_options: {})
    with pytest.raises(UsageError, match=r"to Q1_0: llama\.cpp cannot use this type here: .*no tensor type fallback"):
        quantize_gguf(source, target, "Q1_0")
    assert not target.exists()


@pytest.mark.parametrize(
    ("name", "reason"),
    [("MXFP4_MOE", "a dense model would be Q8_0"), ("nvfp4", "cannot make them"), ("COPY", "as they are")],
)
def test_types_that_make_no_sense_are_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(UsageError, match=f"quantization {name.upper()}: .*{reason}"):
        quant_named(name)


_LAYOUTS: dict[str, dict[str, Any]] = {
    "shared by 2": {"n_layer": 17, "n_head": 8, "n_head_kv": 4, "tied": True},
    "shared by 4": {"n_layer": 16, "n_head": 8, "n_head_kv": 2, "tied": False},
    "llama of 80 layers": {"n_layer": 80, "n_head": 8, "n_head_kv": 4, "tied": False},
    "qwen2 of 80 layers": {"n_layer": 80, "n_head": 8, "n_head_kv": 8, "tied": True, "arch": "qwen2"},
}
# Of the 80-layer models only what their own rule (more bits for the value projection) touches.
_OF_80_LAYERS = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M")


@pytest.mark.slow
@pytest.mark.parametrize("with_imatrix", [False, True], ids=["plain", "imatrix"])
@pytest.mark.parametrize(
    ("layout", "quant"),
    [
        pytest.param(layout, quant, id=f"{name}-{quant}")
        for name, layout in _LAYOUTS.items()
        for quant in (_OF_80_LAYERS if layout["n_layer"] == 80 else QUANTS)
    ],
)
def test_every_type_on_every_layout(tmp_path: Path, layout: dict[str, Any], quant: str, with_imatrix: bool) -> None:
    source = random_gguf(tmp_path / "in.gguf", hidden=256, n_ff=256, vocab=64, most_rows=4, **layout)
    model = read_header(source).model_shape("in.gguf")
    if not with_imatrix and needing_imatrix(predict_types(model, quant), quant):
        with pytest.raises(UsageError, match="importance matrix"):
            quantize_gguf(source, tmp_path / "out.gguf", quant)
        return
    check(source, tmp_path / "out.gguf", quant, with_imatrix=with_imatrix)


def test_table_agrees_with_the_gguf_package() -> None:
    # llama.cpp numbers them (ggml.h, llama.h); this release of the package does not.
    assert (GGML_TYPES["Q2_0"].value, GGML_TYPES["Q2_0"].bits, QUANTS["Q2_0"].ftype) == (42, 2.25, 41)
    for name, kind in GGML_TYPES.items():
        if name == "Q2_0":
            continue
        assert int(gguf.GGMLQuantizationType[name]) == kind.value
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]] == (kind.block, kind.bytes)
    for name, quant in QUANTS.items():
        if name == "Q2_0":
            continue
        prefix = "ALL_" if name == "F32" else "MOSTLY_"
        assert int(gguf.LlamaFileType[prefix + name]) == quant.ftype
    assert {name for name, quant in QUANTS.items() if quant.writer == "direct"} == {"F32", "F16", "BF16", "Q8_0"}
    assert not QUANTS["Q8_0"].uses_imatrix and QUANTS["Q4_0"].uses_imatrix


def test_smollm2_sizes() -> None:
    """Figures of real files: llama.cpp's quantize on SmolLM2-135M-Instruct reported these tensor bytes."""
    model = shape_of(**SMOL)
    expected = {"F16": 269100288, "Q8_0": 143025408, "Q4_0": 89941248, "Q4_K_M": 103668480, "Q2_K": 86416128}
    for quant, size in expected.items():
        assert summarize(model, quant).total_bytes == size
    summary = summarize(model, "Q4_K_M")
    assert round(summary.bits_per_weight, 3) == 6.165
    assert summary.fallback_share > 0.8 and summary.suggestion == "IQ4_NL"
    assert summary.fallbacks["token_embd.weight"] == ("Q6_K", "Q8_0")
    assert summary.fallbacks["blk.5.ffn_gate.weight"] == ("Q4_K", "Q5_0")
    assert "blk.5.ffn_down.weight" not in summary.fallbacks  # rows of 1536 fit
    assert summarize(model, "Q4_0").suggestion is None
    # With tied embeddings, naming the output names the embedding.
    assert predict_types(model, "Q4_0", output_quant="Q4_0")["token_embd.weight"] == "Q4_0"


def test_names_and_grids() -> None:
    assert quant_named("q4_k").name == "Q4_K_M" and quant_named("iq4_nl").base == "IQ4_NL"
    assert ggml_type("q4_k_m").name == "Q4_K" and ggml_type("Q8_0").bits == 8.5
    assert [grid(name) for name in ("F16", "Q8_0", "Q4_0", "IQ4_NL", "Q4_K_M", "IQ4_XS")] == [1, 32, 32, 32, 256, 256]
    with pytest.raises(UsageError, match="Q9_9"):
        quant_named("Q9_9")
    with pytest.raises(UsageError, match="Q9_9"):
        ggml_type("Q9_9")


def test_an_embedding_type_that_does_not_fit_is_refused() -> None:
    """llama.cpp itself checks nothing here and writes a broken tensor."""
    model = shape_of(**SMOL)
    with pytest.raises(BudgetError, match=re.escape("rows of 576 weights are not a multiple of 256 (Q4_K)")):
        predict_types(model, "Q4_0", embedding_quant="Q4_K")
    assert predict_types(model, "Q4_0", embedding_quant="IQ4_NL")["token_embd.weight"] == "IQ4_NL"
