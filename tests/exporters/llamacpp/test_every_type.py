"""Every type, made on a small random model with a tokenizer, opened again in llama.cpp and run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from compact.architectures.table import FAMILIES
from compact.checkpoints.gguf_file import read_gguf
from compact.checkpoints.gguf_types import dequantize
from exporters.llamacpp.engine import LlamaEngine, kl_divergence
from exporters.llamacpp.header import read_header
from exporters.llamacpp.imatrix import Imatrix
from exporters.llamacpp.imatrix_torch import collect
from exporters.llamacpp.quant_types import QUANTS, predict_types
from exporters.llamacpp.quantize import quantize_gguf
from tests.exporters.kept_quantizer import KeptQuantizer
from tests.exporters.small_gguf import TEXT, encode, reference_logits, save_checkpoint, write_gguf

LLAMA = next(family for family in FAMILIES if family.architecture == "LlamaForCausalLM")


@pytest.fixture(autouse=True)
def one_child(kept_quantizer: KeptQuantizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporters.llamacpp.quantize.NativeChild", kept_quantizer)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"), tied=True, hidden=256, n_ff=256)


@pytest.fixture(scope="module")
def source(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(checkpoint, tmp_path_factory.mktemp("source") / "in.gguf")


@pytest.fixture(scope="module")
def matrix(checkpoint: Path) -> Imatrix:
    return collect(checkpoint, [encode(checkpoint, TEXT)], family=LLAMA, device="cpu")


@pytest.fixture(scope="module")
def ids(checkpoint: Path) -> list[int]:
    return encode(checkpoint, TEXT)[:48]


@pytest.fixture(scope="module")
def reference(checkpoint: Path, ids: list[int]) -> Any:
    """The logits of Transformers."""
    return reference_logits(checkpoint, ids)


@pytest.fixture(scope="module")
def divergences() -> dict[str, float]:
    return {}


# Their tables of grid points take llama.cpp seconds to fill.
GRIDS = ("IQ1", "IQ2", "IQ3")


@pytest.mark.parametrize(
    "quant", [pytest.param(name, marks=pytest.mark.slow) if name.startswith(GRIDS) else name for name in QUANTS]
)
def test_a_file_of_the_type_runs(
    ids: list[int],
    reference: Any,
    source: Path,
    matrix: Imatrix,
    divergences: dict[str, float],
    tmp_path: Path,
    quant: str,
) -> None:
    target = tmp_path / f"{quant}.gguf"
    quantize_gguf(source, target, quant, imatrix=matrix)
    model = read_header(source).model_shape("in.gguf")
    written = {tensor.name: tensor.type for tensor in read_header(target).tensors}
    assert written == predict_types(model, quant, has_imatrix=True)
    assert QUANTS[quant].base in written.values()
    with LlamaEngine(target, n_ctx=64) as engine:
        assert engine.tokenize([TEXT], parse_special=True)[0][:48] == ids
        logits = engine.logits(ids)
    assert np.isfinite(logits).all()
    kl = float(kl_divergence(reference, logits).mean())
    # More bits are never far worse: held against every type that was made before this one.
    for other, value in divergences.items():
        if QUANTS[other].nominal_bits >= 2 * QUANTS[quant].nominal_bits:
            assert value < kl, other
    divergences[quant] = kl


@pytest.mark.parametrize(("quant", "levels"), [("Q1_0", 2), ("Q2_0", 3)])
def test_values_of_types_that_the_gguf_package_cannot_dequantise(
    source: Path, tmp_path: Path, quant: str, levels: int
) -> None:
    """What llama.cpp's quantizer gives: the sign times the block's mean; the nearest of -1, 0 and 1 times its peak."""
    target = tmp_path / "out.gguf"
    quantize_gguf(source, target, quant)
    name = "blk.1.ffn_up.weight"
    exact = next(t for t in gguf.GGUFReader(source).tensors if t.name == name).data.astype(np.float32)
    tensor = read_gguf(target).tensors[name]
    assert tensor.qtype.name == quant
    got = dequantize(read_gguf(target).read_rows(tensor, 0, tensor.shape[0]), tensor.qtype)
    assert got.shape == exact.shape
    blocks = exact.reshape(-1, QUANTS[quant].block)
    if quant == "Q1_0":
        expected = np.where(blocks >= 0, 1, -1) * np.abs(blocks).mean(axis=1, keepdims=True)
    else:
        peak = np.abs(blocks).max(axis=1, keepdims=True)
        expected = np.sign(blocks) * np.floor(np.abs(blocks) / peak + 0.5) * peak
    # The scale is kept in float16.
    assert np.allclose(got.reshape(blocks.shape), expected, rtol=2e-3, atol=1e-6)
    assert len(np.unique(np.sign(got))) == levels
