"""Fixtures of this folder: small checkpoints and what is exported from them, once a session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoints import random_model
from tests.exporters.kept_quantizer import KeptQuantizer
from tests.exporters.small_gguf import random_gguf, save_checkpoint, write_gguf
from tests.exporters.small_onnx import export, lively_checkpoint


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 3 layers with its own tokenizer, untied embeddings."""
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"), tied=False)


@pytest.fixture(scope="session")
def small_gguf_file(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as float32 GGUF; the directory's name is not ASCII on purpose."""
    return write_gguf(small_checkpoint, tmp_path_factory.mktemp("modèle ü") / "small.gguf")


@pytest.fixture(scope="session")
def wide_gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random matrices whose rows fit blocks of 256, four query heads a key-value head, its own output matrix."""
    path = tmp_path_factory.mktemp("wide") / "wide.gguf"
    return random_gguf(path, n_layer=9, hidden=256, n_ff=256, n_head=8, n_head_kv=2, vocab=256, tied=False)


@pytest.fixture(scope="session")
def kept_quantizer() -> Iterator[KeptQuantizer]:
    """A child that quantizes all files of the tests that ask for it."""
    quantizer = KeptQuantizer()
    yield quantizer
    quantizer.end()


@pytest.fixture(scope="session")
def onnx_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 2 layers with a chat template and a context of 256."""
    return lively_checkpoint(tmp_path_factory.mktemp("onnx") / "checkpoint")


@pytest.fixture(scope="session")
def onnx_fp32(onnx_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its fp32 folder; the directory's name is not ASCII on purpose."""
    return export(onnx_checkpoint, tmp_path_factory.mktemp("modèle ü") / "fp32", "fp32")


@pytest.fixture(scope="session")
def onnx_int4(onnx_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its int4 folder."""
    return export(onnx_checkpoint, tmp_path_factory.mktemp("onnx") / "int4", "int4")


@pytest.fixture(scope="session")
def onnx_cuda(onnx_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its fp16 folder for CUDA."""
    return export(onnx_checkpoint, tmp_path_factory.mktemp("onnx") / "cuda", "fp16", execution_provider="cuda")


@pytest.fixture(scope="session")
def tied_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose rows are whole blocks of 32, with an even number of them."""
    return random_model(tmp_path_factory.mktemp("tied") / "m", "LlamaForCausalLM", intermediate_size=128)


@pytest.fixture(scope="session")
def untied_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("untied") / "m"
    return random_model(path, "LlamaForCausalLM", intermediate_size=128, tie_word_embeddings=False)
