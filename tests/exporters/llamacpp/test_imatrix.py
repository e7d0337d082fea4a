"""The importance matrix: the sums against hand-made ones, and llama.cpp's two file formats."""

from __future__ import annotations

import dataclasses
import shutil
import struct
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from compact.architectures.table import FAMILIES
from compact.base.errors import CalibrationError, DamagedFileError, DataError, ModelNotFoundError
from compact.checkpoints.gguf_file import read_gguf
from exporters.llamacpp.header import read_header
from exporters.llamacpp.imatrix import Imatrix
from exporters.llamacpp.imatrix_files import read_imatrix, write_imatrix
from exporters.llamacpp.imatrix_torch import collect
from exporters.llamacpp.quantize import quantize_gguf
from tests.exporters.small_gguf import TEXT, encode, save_checkpoint, write_gguf

LLAMA = next(family for family in FAMILIES if family.architecture == "LlamaForCausalLM")


@pytest.fixture(scope="module")
def sequences(small_checkpoint: Path) -> list[list[int]]:
    ids = encode(small_checkpoint, TEXT * 2)
    return [ids[:40], ids[40:80], ids[80:97]]


@pytest.fixture(scope="module")
def matrix(small_checkpoint: Path, sequences: list[list[int]]) -> Imatrix:
    return collect(small_checkpoint, sequences, family=LLAMA, device="cpu", source_id="abc")


def test_sums_equal_hand_made_ones(small_checkpoint: Path, sequences: list[list[int]], matrix: Imatrix) -> None:
    """Inputs recomputed from the hidden states, without hooks: the norms and the FFN of each layer, in float64."""
    model = LlamaForCausalLM.from_pretrained(small_checkpoint, dtype=torch.float64).eval()
    epsilon = model.config.rms_norm_eps

    def norm(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + epsilon) * weight

    sums: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for sequence in sequences:
            states = model(torch.tensor([sequence]), output_hidden_states=True).hidden_states
            for index, layer in enumerate(model.model.layers):
                attention = norm(states[index][0], layer.input_layernorm.weight)
                ffn = None
                if index + 1 < len(model.model.layers):
                    # The FFN is given the state plus the attention's output, which is found by running it alone.
                    position = model.model.rotary_emb(states[index], torch.arange(len(sequence))[None])
                    mixed = layer.self_attn(attention[None], position_embeddings=position, attention_mask=None)[0]
                    ffn = norm((states[index] + mixed)[0], layer.post_attention_layernorm.weight)
                for part, values in (("attn_q", attention), ("attn_v", attention), ("ffn_gate", ffn)):
                    if values is not None:
                        name = f"blk.{index}.{part}.weight"
                        sums[name] = sums.get(name, torch.zeros(())) + values.pow(2).sum(0)
                if ffn is not None:
                    mlp = layer.mlp
                    hidden = torch.nn.functional.silu(ffn @ mlp.gate_proj.weight.T) * (ffn @ mlp.up_proj.weight.T)
                    name = f"blk.{index}.ffn_down.weight"
                    sums[name] = sums.get(name, torch.zeros(())) + hidden.pow(2).sum(0)
            sums["output.weight"] = sums.get("output.weight", torch.zeros(())) + states[-1][0].pow(2).sum(0)
    total = sum(len(sequence) for sequence in sequences)
    # Of the last layer only what the attention is given: hidden_states holds its output behind the final norm.
    assert len(sums) == 2 * 3 + 2 * 1 + 2 + 1
    for name, values in sums.items():
        assert np.allclose(matrix.means[name], (values / total).numpy(), rtol=1e-4), name
        assert matrix.counts[name].tolist() == [total]


def test_shape_of_the_result(small_checkpoint: Path, matrix: Imatrix, small_gguf_file: Path) -> None:
    model = read_header(small_gguf_file).model_shape("small.gguf")
    matrices = {t.name for t in model.tensors if len(t.shape) == 2} - {"token_embd.weight"}
    assert set(matrix.means) == matrices  # token_embd is looked up, not multiplied: it has no inputs
    assert matrix.tokens == 97 and matrix.chunk_size == 0 and matrix.source_id == "abc"
    assert set(matrix.fitting(model)) == matrices
    assert all(values.dtype == np.float32 for values in matrix.means.values())
    # q, k and v have one input.
    assert np.array_equal(matrix.means["blk.0.attn_q.weight"], matrix.means["blk.0.attn_k.weight"])
    even = collect(small_checkpoint, [[1, 2, 3], [4, 5, 6]], family=LLAMA, device="cpu", head=False)
    assert even.chunk_size == 3 and "output.weight" not in even.means


def test_the_head_of_a_tied_model_is_its_embedding(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "tied", tied=True, hidden=256, n_ff=256)
    ids = encode(checkpoint, TEXT)
    matrix = collect(checkpoint, [ids], family=LLAMA, device="cpu")
    assert "token_embd.weight" in matrix.means and "output.weight" not in matrix.means
    source = write_gguf(checkpoint, tmp_path / "tied.gguf")
    bare = Imatrix(
        {name: values for name, values in matrix.means.items() if name != "token_embd.weight"},
        {name: values for name, values in matrix.counts.items() if name != "token_embd.weight"},
        tokens=matrix.tokens,
    )
    sizes = []
    for name, used in (("with", matrix), ("without", bare)):
        quantize_gguf(source, tmp_path / f"{name}.gguf", "Q4_0", imatrix=used, embedding_quant="Q4_0")
        sizes.append((tmp_path / f"{name}.gguf").read_bytes())
    assert len(sizes[0]) == len(sizes[1]) and sizes[0] != sizes[1]


def test_no_tokens(small_checkpoint: Path) -> None:
    with pytest.raises(CalibrationError):
        collect(small_checkpoint, [[], []], family=LLAMA)


def test_gguf_round_trip(matrix: Imatrix, tmp_path: Path) -> None:
    path, again = tmp_path / "imatrix.gguf", tmp_path / "again.gguf"
    write_imatrix(matrix, path)
    write_imatrix(matrix, again)
    assert path.read_bytes() == again.read_bytes()
    back = read_imatrix(path)
    assert back.means.keys() == matrix.means.keys() and back.source_id == "abc" and back.tokens == 97
    for name, values in matrix.means.items():
        assert np.allclose(back.means[name], values, rtol=1e-6) and back.counts[name].tolist() == [97]
    assert back.id == read_imatrix(again).id
    changed = {**back.means, "output.weight": back.means["output.weight"] * 2}
    assert dataclasses.replace(back, means=changed).id != back.id
    # As the gguf package sees it: llama.cpp's names, types and shapes.
    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert tensors["blk.0.ffn_down.weight.in_sum2"].shape.tolist() == [96, 1]
    assert tensors["blk.0.ffn_down.weight.counts"].data.reshape(-1).tolist() == [97.0]
    assert reader.fields["general.type"].contents() == "imatrix"
    assert "general.architecture" not in reader.fields


def test_gguf_of_experts(tmp_path: Path) -> None:
    """Stacked experts have a count each; one that no token reached counts as 1 everywhere."""
    writer = gguf.GGUFWriter(tmp_path / "experts.gguf", "imatrix")
    writer.add_type("imatrix")
    writer.add_tensor("blk.0.ffn_up_exps.weight.in_sum2", np.array([[2.0, 4.0], [0.0, 0.0]], dtype=np.float32))
    writer.add_tensor("blk.0.ffn_up_exps.weight.counts", np.array([[2.0], [0.0]], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_imatrix(tmp_path / "experts.gguf").means["blk.0.ffn_up_exps.weight"].tolist() == [1, 2, 1, 1]


def legacy(tail: bytes = b"") -> bytes:
    name = b"blk.0.attn_q.weight"
    values = np.array([3.0, 6.0, 0.0], dtype="<f4").tobytes()
    return struct.pack("<ii", 1, len(name)) + name + struct.pack("<ii", 3, 3) + values + tail


@pytest.mark.parametrize("tail", [b"", struct.pack("<ii", 3, 4) + b"wiki"], ids=["bare", "with data set"])
def test_legacy_format(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(legacy(tail))
    matrix = read_imatrix(path)
    assert matrix.means["blk.0.attn_q.weight"].tolist() == [1.0, 2.0, 0.0]
    assert matrix.counts["blk.0.attn_q.weight"].tolist() == [3]
    assert matrix.datasets == (("wiki",) if tail else ())


def test_damaged_files_are_typed_errors(matrix: Imatrix, small_gguf_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        read_imatrix(tmp_path / "none")
    with pytest.raises(DataError, match="not an importance matrix"):
        read_imatrix(small_gguf_file)
    path = tmp_path / "broken"
    write_imatrix(matrix, path)
    whole = path.read_bytes()
    huge = struct.pack("<ii", 1, 2**31 - 1) + b"x"
    for data in (b"", b"\0\0\0\0", legacy()[:-1], legacy()[:9], huge, struct.pack("<ii", -1, 1), whole[:-100]):
        path.write_bytes(data)
        with pytest.raises(DamagedFileError):
            read_imatrix(path)
    for value in (np.nan, np.inf, -1.0):
        path.write_bytes(legacy().replace(struct.pack("<f", 6.0), struct.pack("<f", value)))
        with pytest.raises(DamagedFileError, match="negative or not finite"):
            read_imatrix(path)


@pytest.mark.skipif(shutil.which("llama-quantize") is None, reason="llama-quantize is not on PATH")
@pytest.mark.parametrize("quant", ["Q4_0", "IQ4_XS", "IQ3_XXS", "Q2_0"])
def test_llama_quantize_reads_the_file_and_makes_the_same_tensors(tmp_path: Path, quant: str) -> None:
    checkpoint = save_checkpoint(tmp_path / "tied", tied=True, hidden=256, n_ff=256)
    source, saved = write_gguf(checkpoint, tmp_path / "in.gguf"), tmp_path / "imatrix.gguf"
    write_imatrix(collect(checkpoint, [encode(checkpoint, TEXT)], family=LLAMA, device="cpu"), saved)
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    quantize_gguf(source, ours, quant, imatrix=read_imatrix(saved))
    tool = ["llama-quantize", "--imatrix", str(saved), str(source), str(theirs), quant, "1"]
    subprocess.run(tool, check=True, capture_output=True)
    left, right = read_gguf(ours), read_gguf(theirs)
    assert right.values["quantize.imatrix.entries_count"] == 22
    for name, tensor in left.tensors.items():
        other = right.tensors[name]
        assert tensor.qtype is other.qtype
        # Another build of llama.cpp may round otherwise in a few places.
        different = left.read_rows(tensor, 0, tensor.shape[0]) != right.read_rows(other, 0, other.shape[0])
        assert different.mean() < 0.01, name
