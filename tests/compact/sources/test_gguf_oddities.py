"""GGUF files as people report them: each gives what llama.cpp computes, or one line that says what is wrong."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from compact.base.errors import (
    CompactEdgeError,
    DamagedFileError,
    MixtureOfExpertsError,
    UnsupportedArchitectureError,
)
from compact.sources.from_gguf import read_gguf_checkpoint
from exporters.gguf_writer.write import write_gguf
from exporters.llamacpp.engine import LlamaEngine
from exporters.llamacpp.quantize import quantize_gguf
from exporters.opened import named_artifact
from tests.checkpoints import TEXTS, write_checkpoint
from tests.compact.sources.gguf_edits import rewritten

IDS = [5, 6, 7, 300, 2, 90]
Change = Callable[[gguf.ReaderTensor], Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 model: its norms and biases are vectors, its output is tied."""
    folder = tmp_path_factory.mktemp("odd")
    write_gguf(write_checkpoint(folder / "hf", "qwen2", dtype=torch.float32), folder / "m.gguf", "F32")
    return folder / "m.gguf"


def changed(
    source: Path,
    target: Path,
    change: Change = lambda _: None,
    *,
    arch: str | None = None,
    alignment: int | None = None,
    more: Mapping[str, Any] | None = None,
) -> Path:
    """A copy with other tensors. `change` returns the new data of a tensor, or None to keep it."""
    reader = gguf.GGUFReader(source)
    old = str(reader.fields["general.architecture"].contents())
    writer = gguf.GGUFWriter(target, arch or old)
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key.replace(f"{old}.", f"{arch or old}."), field.contents(), field.types[0], sub)
    for tensor in reader.tensors:
        new = change(tensor)
        writer.add_tensor(tensor.name, tensor.data if new is None else new)
    for name, data in (more or {}).items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def read_back(path: Path, tmp_path: Path) -> Path:
    out = tmp_path / "back"
    out.mkdir(exist_ok=True)
    read_gguf_checkpoint(path, out)
    return out


def assert_computes_the_same(path: Path, tmp_path: Path, limit: float = 1e-3) -> None:
    """Transformers on what was read, and llama.cpp on the file, agree on every logit within `limit`."""
    model = AutoModelForCausalLM.from_pretrained(read_back(path, tmp_path), dtype=torch.float32)
    with torch.no_grad():
        ours = model(torch.tensor([IDS])).logits[0].numpy()
    with LlamaEngine(path) as engine:
        assert np.abs(engine.logits(IDS) - ours).max() < limit


def embedding(path: Path) -> Any:
    return next(tensor.data for tensor in gguf.GGUFReader(path).tensors if tensor.name == "token_embd.weight")


def test_no_rope_base(whole: Path, tmp_path: Path) -> None:
    assert_computes_the_same(rewritten(whole, tmp_path / "m.gguf", qwen2__rope__freq_base=None), tmp_path)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_an_output_of_its_own(whole: Path, tmp_path: Path, scale: float) -> None:
    output = embedding(whole) * np.float32(scale)
    assert_computes_the_same(changed(whole, tmp_path / "m.gguf", more={"output.weight": output}), tmp_path)


def test_another_alignment(whole: Path, tmp_path: Path) -> None:
    assert_computes_the_same(changed(whole, tmp_path / "m.gguf", alignment=64), tmp_path)


@pytest.mark.parametrize("prefix", [True, False])
def test_a_space_prefix_of_a_byte_level_tokenizer(whole: Path, tmp_path: Path, prefix: bool) -> None:
    path = rewritten(whole, tmp_path / "m.gguf", tokenizer__ggml__add_space_prefix=prefix)
    tokenizer = Tokenizer.from_file(str(read_back(path, tmp_path) / "tokenizer.json"))
    with LlamaEngine(path, vocab_only=True) as engine:
        assert engine.tokenize(TEXTS, parse_special=True) == [
            tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS
        ]


@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_vectors_of_another_type(tmp_path: Path, family: str, kind: Any) -> None:
    """llama.cpp aborts on norms that are not float32. Float16 loses nothing here, as the values are short."""
    model = write_checkpoint(tmp_path / "hf", family, dtype=torch.float16)
    write_gguf(model, tmp_path / "m.gguf", "F16")
    path = changed(
        tmp_path / "m.gguf", tmp_path / "n.gguf", lambda t: t.data.astype(kind) if t.data.ndim == 1 else None
    )
    if kind is np.float64:
        with pytest.raises(UnsupportedArchitectureError, match="is a vector of type F64"):
            read_back(path, tmp_path)
        return
    norms = {name: value for name, value in load_file(model / "model.safetensors").items() if value.ndim == 1}
    found = load_file(read_back(path, tmp_path) / "model.safetensors")
    for name, value in norms.items():
        assert torch.allclose(found[name].float(), value.float(), atol=1e-3), name


@pytest.mark.parametrize("quant", ["Q1_0", "Q2_0"])
def test_types_that_the_gguf_package_cannot_read(tmp_path: Path, quant: str) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 128}
    write_gguf(write_checkpoint(tmp_path / "hf", dtype=torch.float32, **sizes), tmp_path / "f.gguf", "F32")
    quantize_gguf(tmp_path / "f.gguf", tmp_path / "m.gguf", quant, n_threads=1)
    # llama.cpp rounds the activations to eight bits. Logits are around 1, and wrong weights would change them as much.
    assert_computes_the_same(tmp_path / "m.gguf", tmp_path, limit=0.1)


def padded(tensor: gguf.ReaderTensor) -> Any:
    return np.concatenate([tensor.data, tensor.data[:7]]) if tensor.name == "token_embd.weight" else None


def shortened(tensor: gguf.ReaderTensor) -> Any:
    return tensor.data[:-7] if tensor.name == "token_embd.weight" else None


@pytest.mark.parametrize(("change", "rows"), [(padded, 428), (shortened, 414)])
def test_more_or_fewer_rows_than_tokens(whole: Path, tmp_path: Path, change: Change, rows: int) -> None:
    path = changed(whole, tmp_path / "m.gguf", change)
    with pytest.raises(DamagedFileError, match=f"421 tokens, but the embedding has {rows} rows") as caught:
        read_back(path, tmp_path)
    assert caught.value.hint is not None and "convert the model again" in caught.value.hint
    with pytest.raises(DamagedFileError):
        LlamaEngine(path)


def tokens_of(path: Path) -> list[str]:
    tokens: list[str] = gguf.GGUFReader(path).fields["tokenizer.ggml.tokens"].contents()
    return tokens


def test_a_token_twice(whole: Path, tmp_path: Path) -> None:
    tokens = tokens_of(whole)
    tokens[2] = tokens[1]
    path = rewritten(whole, tmp_path / "m.gguf", tokenizer__ggml__tokens=tokens)
    with pytest.raises(DamagedFileError, match=r"has '<\|im_start\|>' twice, as 1 and 2"):
        read_back(path, tmp_path)
    with pytest.raises(DamagedFileError, match=r"the same token twice, which makes llama\.cpp abort"):
        named_artifact(str(path))


def test_empty_tokens_get_the_names_of_llama_cpp(tmp_path: Path) -> None:
    """Two unused rows without a text. Texts must differ, so llama.cpp names them."""
    model = write_checkpoint(tmp_path / "hf", "qwen2", dtype=torch.float32, padding=2)
    write_gguf(model, tmp_path / "m.gguf", "F32")
    tokens = tokens_of(tmp_path / "m.gguf")
    tokens[-2:] = ["", ""]
    types = [1] * len(tokens)
    changes = {"tokenizer__ggml__tokens": tokens, "tokenizer__ggml__token_type": types}
    path = rewritten(tmp_path / "m.gguf", tmp_path / "n.gguf", **changes)
    tokenizer = Tokenizer.from_file(str(read_back(path, tmp_path) / "tokenizer.json"))
    with LlamaEngine(path, vocab_only=True) as engine:
        last = len(tokens) - 1
        assert engine.detokenize([last]).decode() == tokenizer.id_to_token(last) == f"[EMPTY_{last}]"


@pytest.mark.parametrize(
    ("key", "word"),
    [("token_type", "token_type is missing"), ("merges", "merges is missing"), ("tokens", "tokens is missing")],
)
def test_a_list_of_the_tokenizer_is_missing(whole: Path, tmp_path: Path, key: str, word: str) -> None:
    path = rewritten(whole, tmp_path / "m.gguf", **{f"tokenizer__ggml__{key}": None})
    with pytest.raises(DamagedFileError, match=word) as caught:
        read_back(path, tmp_path)
    assert caught.value.hint is not None and "Hugging Face checkpoint" in caught.value.hint


def test_architectures_that_are_not_supported(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedArchitectureError, match="'mamba' is not supported"):
        read_back(changed(whole, tmp_path / "a.gguf", arch="mamba"), tmp_path)
    experts = changed(whole, tmp_path / "b.gguf", arch="qwen2moe")
    experts = rewritten(experts, tmp_path / "c.gguf", qwen2moe__expert_count=60)
    with pytest.raises(MixtureOfExpertsError, match=r"qwen2moe\.expert_count = 60"):
        read_back(experts, tmp_path)


@pytest.mark.parametrize("case", ["no dimensions", "a dimension of 0"])
def test_a_tensor_without_elements(whole: Path, tmp_path: Path, case: str) -> None:
    content, name = bytearray(whole.read_bytes()), b"blk.0.ffn_up.weight"
    at = content.index(name) + len(name)
    struct.pack_into("<I" if case == "no dimensions" else "<Q", content, at + 4 * (case != "no dimensions"), 0)
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"blk\.0\.ffn_up\.weight") as caught:
        read_back(tmp_path / "m.gguf", tmp_path)
    assert caught.value.hint == "download or convert the GGUF again"
    with pytest.raises(CompactEdgeError):
        LlamaEngine(tmp_path / "m.gguf")


def test_a_missing_tensor_has_a_next_step(whole: Path, tmp_path: Path) -> None:
    path = rewritten(whole, tmp_path / "m.gguf", qwen2__block_count=3)
    with pytest.raises(DamagedFileError, match="is missing") as caught:
        read_back(path, tmp_path)
    assert caught.value.hint == "download or convert the GGUF again"
