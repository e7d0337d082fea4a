"""The GGUF writer: bytes, types and keys against the gguf package's own reader and quantizer."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from compact.base.errors import (
    CompactEdgeError,
    DamagedFileError,
    MixtureOfExpertsError,
    PickleRefusedError,
    QuantizedCheckpointError,
    StorageError,
    UnsafePathError,
    UnsupportedArchitectureError,
    UnsupportedTokenizerError,
    UsageError,
)
from exporters.gguf_writer.metadata import GgufMetadata
from exporters.gguf_writer.tensors import quantize_q8_0
from exporters.gguf_writer.write import artifact_name, write_gguf
from tests.checkpoints import TEXTS, copy_checkpoint, train_tokenizer, write_checkpoint

Q8_0 = gguf.GGMLQuantizationType.Q8_0


def read(path: Path) -> tuple[dict[str, Any], dict[str, gguf.ReaderTensor]]:
    reader = gguf.GGUFReader(path)
    return {key: field.contents() for key, field in reader.fields.items()}, {t.name: t for t in reader.tensors}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("export") / "model")


@pytest.mark.parametrize("quant", ["F32", "F16", "BF16", "Q8_0"])
def test_tensors_hold_the_values_of_the_checkpoint(tmp_path: Path, llama: Path, quant: Any) -> None:
    info = write_gguf(llama, tmp_path / "m.gguf", quant)
    _, tensors = read(tmp_path / "m.gguf")
    weights = load_file(llama / "model.safetensors")
    assert info.n_tensors == len(tensors) == len(weights)
    assert info.n_params == sum(weight.numel() for weight in weights.values())
    assert info.size_bytes == (tmp_path / "m.gguf").stat().st_size
    for hf, name in (
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("model.layers.1.post_attention_layernorm", "blk.1.ffn_norm"),
        ("model.layers.0.mlp.down_proj", "blk.0.ffn_down"),
        ("model.layers.1.self_attn.v_proj", "blk.1.attn_v"),
    ):
        tensor, values = tensors[f"{name}.weight"], weights[f"{hf}.weight"].float().numpy()
        expected = gguf.GGMLQuantizationType.F32 if values.ndim == 1 else gguf.GGMLQuantizationType[quant]
        assert tensor.tensor_type == expected, name
        assert tuple(reversed(tensor.shape.tolist())) == values.shape
        assert tensor.data.tobytes() == gguf.quants.quantize(values, expected).tobytes(), name
    assert info.types == {"F32": 20} if quant == "F32" else {quant: 15, "F32": 5}


def test_rows_of_q_and_k_are_interleaved(tmp_path: Path, llama: Path) -> None:
    write_gguf(llama, tmp_path / "m.gguf", "F32")
    _, tensors = read(tmp_path / "m.gguf")
    weights = load_file(llama / "model.safetensors")
    for part, heads in (("q", 4), ("k", 2)):
        ours = tensors[f"blk.0.attn_{part}.weight"].data
        theirs = weights[f"model.layers.0.self_attn.{part}_proj.weight"].float().numpy()
        for row in range(16 * heads):
            head, place = divmod(row, 16)
            pair, half = divmod(place, 2)
            assert (ours[row] == theirs[16 * head + 8 * half + pair]).all()


def test_qwen2_has_float32_biases_and_unpermuted_rows(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "hf", "qwen2", pre="qwen2", padding=7)
    write_gguf(source, tmp_path / "m.gguf", "Q8_0")
    keys, tensors = read(tmp_path / "m.gguf")
    weights = load_file(source / "model.safetensors")
    bias = tensors["blk.1.attn_q.bias"]
    assert bias.tensor_type == gguf.GGMLQuantizationType.F32
    assert (bias.data == weights["model.layers.1.self_attn.q_proj.bias"].float().numpy()).all()
    assert keys["general.architecture"] == "qwen2"
    assert not {"qwen2.vocab_size", "qwen2.rope.dimension_count", "qwen2.attention.key_length"} & set(keys)
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    n = len(tokens)
    assert n == weights["model.embed_tokens.weight"].shape[0]
    assert tokens[-7:] == [f"[PAD{i}]" for i in range(n - 7, n)]
    assert types[-7:] == [gguf.TokenType.UNUSED] * 7


def test_rows_that_fit_no_block_fall_back_to_float16(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "hf", intermediate_size=80)
    info = write_gguf(source, tmp_path / "m.gguf", "Q8_0")
    _, tensors = read(tmp_path / "m.gguf")
    assert tensors["blk.0.ffn_down.weight"].tensor_type == gguf.GGMLQuantizationType.F16
    assert tensors["blk.0.ffn_up.weight"].tensor_type == Q8_0
    assert info.types["F16"] == 2


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-20, 1e-37, 1e-40, 1e6])
def test_q8_0_equals_the_reference_bit_for_bit(scale: float) -> None:
    rng = np.random.default_rng(1)
    values = (rng.standard_normal((300, 64)) * scale).astype(np.float32)
    values[::7] = 0
    values[1, :32] = np.arange(32) + 0.5  # halves: away from zero
    values[1, 0] = 127
    values[2] = -values[1]
    values[3] = np.nextafter(np.float32(0.5), np.float32(0))  # just below a half
    values[3, 0] = 127
    with np.errstate(all="ignore"):
        assert quantize_q8_0(values).tobytes() == gguf.quants.quantize(values, Q8_0).tobytes()


def test_types_and_texts_of_tokens(tmp_path: Path, llama: Path) -> None:
    write_gguf(llama, tmp_path / "m.gguf", "F16")
    keys, _ = read(tmp_path / "m.gguf")
    document = json.loads((llama / "tokenizer.json").read_text(encoding="utf-8"))
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    assert tokens == [*sorted(document["model"]["vocab"], key=document["model"]["vocab"].get), "<tool>"]
    assert types[:3] == [gguf.TokenType.CONTROL] * 3
    assert types[-1] == gguf.TokenType.USER_DEFINED
    assert set(types[3:-1]) == {gguf.TokenType.NORMAL}
    assert keys["tokenizer.ggml.merges"] == [" ".join(pair) for pair in document["model"]["merges"]]
    ids = {role: keys[f"tokenizer.ggml.{role}_token_id"] for role in ("bos", "eos", "padding")}
    assert ids == {"bos": 1, "eos": 2, "padding": 0}
    assert "im_start" in keys["tokenizer.chat_template"]


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe"])
def test_add_bos_is_explicit_and_what_the_tokenizer_does(tmp_path: Path, bos: bool, pre: str) -> None:
    pytest.importorskip("llama_cpp")
    from tests.checkpoints import llama_vocabularies

    source = write_checkpoint(tmp_path / "hf", pre=pre, bos=bos)
    write_gguf(source, tmp_path / "m.gguf", "F16")
    keys, _ = read(tmp_path / "m.gguf")
    assert keys["tokenizer.ggml.add_bos_token"] is bos
    assert keys["tokenizer.ggml.add_eos_token"] is False
    (answer,) = llama_vocabularies([tmp_path / "m.gguf"], TEXTS)
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    assert answer["ids"] == [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    assert answer["add_bos"] is bos


def test_the_name_of_the_pre_tokenizer_can_be_given(tmp_path: Path, llama: Path) -> None:
    assert write_gguf(llama, tmp_path / "a.gguf", "F16").pre == "gpt-2"
    assert write_gguf(llama, tmp_path / "b.gguf", "F16", pre="olmo").pre == "olmo"


@pytest.mark.parametrize("spelling", ["4", "5"])
def test_llama3_scaling_becomes_rope_freqs_in_either_spelling(tmp_path: Path, spelling: str) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    if spelling == "4":
        changes: dict[str, Any] = {"rope_theta": 500000.0, "rope_scaling": scaling}
    else:
        changes = {"rope_theta": None, "rope_parameters": {"rope_theta": 500000.0, **scaling}}
    source = write_checkpoint(tmp_path / "hf", head_dim=128, **changes)
    info = write_gguf(source, tmp_path / "m.gguf", "BF16")
    keys, tensors = read(tmp_path / "m.gguf")
    assert keys["llama.rope.freq_base"] == 500000.0
    factors = tensors["rope_freqs.weight"].data
    # Llama 3.1: wavelength 2 pi 500000^(i/64) is below 8192/4 for i <= 28, above 8192/1 for i >= 35.
    assert factors.shape == (64,) and factors.dtype == np.float32
    assert (factors == 1).sum() == 29 and (factors == 8).sum() == 29
    assert (np.diff(factors) >= 0).all()
    assert info.n_tensors == len(tensors)
    assert info.n_params == sum(t.n_elements for t in tensors.values()) - 64


def test_metadata_of_the_caller_and_of_the_card(tmp_path: Path, llama: Path) -> None:
    source = copy_checkpoint(llama, tmp_path / "hf")
    (source / "README.md").write_text(
        "---\nlicense: apache-2.0\nbase_model: some/other\nlanguage: [en, de]\n---\n# x\n"
    )
    (source / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_k": 20, "eos_token_id": [2]}))
    extra = {"compact.plan_id": "ab12", "compact.vocab_size": 300, "compact.ratio": 0.25, "compact.healed": False}
    wanted = GgufMetadata(name="Small One", base_model="org/Big-One-1B", description="pruned", extra=extra)
    info = write_gguf(source, tmp_path / "m.gguf", "F16", metadata=wanted)
    keys, _ = read(tmp_path / "m.gguf")
    assert info.name == keys["general.name"] == "Small One"
    assert keys["general.base_model.0.repo_url"] == "https://huggingface.co/org/Big-One-1B"
    assert keys["general.base_model.count"] == 1
    assert (keys["general.license"], keys["general.languages"]) == ("apache-2.0", ["en", "de"])
    assert keys["general.description"] == "pruned"
    assert {key: keys[key] for key in extra} == extra
    assert keys["general.sampling.top_k"] == 20
    assert keys["general.sampling.temp"] == pytest.approx(0.6)


def test_eos_may_be_a_list(tmp_path: Path, llama: Path) -> None:
    source = copy_checkpoint(llama, tmp_path / "hf", eos_token_id=[2, 0])
    names = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    del names["eos_token"]
    (source / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    write_gguf(source, tmp_path / "m.gguf", "F16")
    assert read(tmp_path / "m.gguf")[0]["tokenizer.ggml.eos_token_id"] == 2


def test_the_directory_s_name_says_nothing_about_the_model(tmp_path: Path, llama: Path) -> None:
    source = copy_checkpoint(llama, tmp_path / "Qwen9-70B-v2-Instruct")
    write_gguf(source, tmp_path / "m.gguf", "F16", metadata=GgufMetadata(name="mine"))
    keys, _ = read(tmp_path / "m.gguf")
    assert not {"general.finetune", "general.version", "general.basename"} & set(keys)
    assert keys["general.size_label"] != "70B"


def test_shards_and_a_single_file_give_the_same_bytes(tmp_path: Path) -> None:
    wanted = GgufMetadata(name="same")
    for number in (1, 3):
        source = write_checkpoint(tmp_path / f"hf{number}", shards=number)
        write_gguf(source, tmp_path / f"{number}.gguf", "BF16", metadata=wanted)
    _, one = read(tmp_path / "1.gguf")
    _, three = read(tmp_path / "3.gguf")
    assert {name: t.data.tobytes() for name, t in one.items()} == {name: t.data.tobytes() for name, t in three.items()}


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, llama: Path) -> None:
    for name in ("a", "b"):
        write_gguf(llama, tmp_path / name, "Q8_0")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_progress_counts_the_bytes_of_the_tensors(tmp_path: Path, llama: Path) -> None:
    class Recorder:
        total = done = 0

        @contextmanager
        def task(self, description: str, total: int | None, unit: str) -> Iterator[Recorder]:
            self.total = total or 0
            assert unit == "bytes"
            yield self

        def advance(self, amount: int = 1) -> None:
            self.done += amount

        def note(self, text: str) -> None:
            raise AssertionError(text)

    recorder = Recorder()
    write_gguf(llama, tmp_path / "m.gguf", "F16", progress=recorder)
    assert recorder.total == recorder.done > 0


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    peaks = []
    for layers, inner in ((1, 1 << 14), (4, 1 << 15)):
        source = write_checkpoint(tmp_path / str(layers), num_hidden_layers=layers, intermediate_size=inner)
        write_gguf(source, tmp_path / "warm.gguf", "F32")  # imports and caches are not the model's memory
        tracemalloc.start()
        info = write_gguf(source, tmp_path / "m.gguf", "F32")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert info.size_bytes > 90_000_000
    assert peaks[1] < peaks[0] * 1.2 < 40_000_000


@pytest.mark.parametrize(
    ("name", "params", "expected"),
    [
        ("SmolLM2-135M-Instruct", 134_515_008, "SmolLM2-135M-Instruct-Q8_0.gguf"),
        ("Llama 3.2", 1_235_814_400, "Llama-3.2-1.2B-Q8_0.gguf"),
        ("tiny", 1_900_000, "tiny-1.9M-Q8_0.gguf"),
        ("../../etc/passwd", 10_000, "etc-passwd-10K-Q8_0.gguf"),
        ("", 10_000, "model-10K-Q8_0.gguf"),
    ],
)
def test_artifact_names(name: str, params: int, expected: str) -> None:
    assert artifact_name(name, params, "Q8_0") == expected


@pytest.mark.parametrize(
    ("changes", "error", "word"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, UnsupportedArchitectureError, "GPT2LMHeadModel"),
        ({"num_local_experts": 8}, MixtureOfExpertsError, "num_local_experts"),
        ({"quantization_config": {"quant_method": "gptq"}}, QuantizedCheckpointError, "quantised"),
        ({"hidden_act": "gelu"}, UnsupportedArchitectureError, "gelu"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, UnsupportedArchitectureError, "dynamic"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, UnsupportedArchitectureError, "longrope"),
        ({"partial_rotary_factor": 0.5}, UnsupportedArchitectureError, "partial_rotary_factor"),
        ({"use_sliding_window": True, "max_window_layers": 1}, UnsupportedArchitectureError, "sliding"),
        ({"rope_theta": -1.0}, DamagedFileError, "rope_theta"),
        ({"num_hidden_layers": 3}, DamagedFileError, "missing"),
        ({"num_hidden_layers": 1 << 30}, DamagedFileError, "layers"),
        ({"num_hidden_layers": True}, DamagedFileError, "num_hidden_layers"),
        ({"hidden_size": None}, DamagedFileError, "hidden_size"),
        ({"hidden_size": 1 << 40}, DamagedFileError, "hidden_size"),
        ({"num_key_value_heads": 3}, DamagedFileError, "heads"),
        ({"intermediate_size": 64}, DamagedFileError, "shape"),
        ({"tie_word_embeddings": False}, DamagedFileError, "lm_head"),
        ({"vocab_size": 100}, DamagedFileError, "shape"),
        ({"rms_norm_eps": "small"}, DamagedFileError, "rms_norm_eps"),
    ],
)
def test_refusals_of_a_configuration(
    tmp_path: Path, llama: Path, changes: dict[str, Any], error: type[CompactEdgeError], word: str
) -> None:
    source = copy_checkpoint(llama, tmp_path / "hf", **changes)
    with pytest.raises(error, match=word):
        write_gguf(source, tmp_path / "m.gguf", "F16")
    assert not (tmp_path / "m.gguf").exists()


def test_a_token_beyond_the_embedding_is_refused(tmp_path: Path) -> None:
    document = train_tokenizer()
    source = write_checkpoint(tmp_path / "hf", tokenizer=document)
    document["model"]["vocab"]["xyz"] = 9999
    (source / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(DamagedFileError, match="9999"):
        write_gguf(source, tmp_path / "m.gguf", "F16")


def test_two_ids_with_one_text_are_refused(tmp_path: Path) -> None:
    # llama.cpp aborts the process on such a file.
    document = train_tokenizer()
    document["model"]["vocab"]["[PAD430]"] = 429
    with pytest.raises(DamagedFileError, match=r"\[PAD430\]"):
        write_gguf(write_checkpoint(tmp_path / "hf", tokenizer=document, padding=5), tmp_path / "m.gguf", "F16")


def test_a_post_processor_that_llama_cpp_cannot_follow_is_refused(tmp_path: Path) -> None:
    document = train_tokenizer(bos=True)
    single = document["post_processor"]["single"]
    single.insert(0, single[0])
    with pytest.raises(UnsupportedTokenizerError, match="post_processor"):
        write_gguf(write_checkpoint(tmp_path / "hf", tokenizer=document), tmp_path / "m.gguf", "F16")


def test_values_beyond_float16_are_refused(tmp_path: Path, llama: Path) -> None:
    source = copy_checkpoint(llama, tmp_path / "hf")
    weights = load_file(source / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][3, 5] = 1e6
    save_file(weights, source / "model.safetensors")
    with pytest.raises(UsageError, match="up_proj"):
        write_gguf(source, tmp_path / "m.gguf", "F16")
    write_gguf(source, tmp_path / "m.gguf", "BF16")


def test_refusals_of_weights(tmp_path: Path, llama: Path) -> None:
    source = copy_checkpoint(llama, tmp_path / "hf")
    weights = load_file(source / "model.safetensors")
    save_file({**weights, "model.layers.0.extra.weight": torch.zeros(2)}, source / "model.safetensors")
    with pytest.raises(UnsupportedArchitectureError, match="extra"):
        write_gguf(source, tmp_path / "m.gguf", "F16")
    # Buffers of old checkpoints are left out.
    save_file({**weights, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(2)}, source / "model.safetensors")
    write_gguf(source, tmp_path / "m.gguf", "F16")
    weights["model.layers.0.mlp.up_proj.weight"] = torch.zeros(96, 64, dtype=torch.int8)
    save_file(weights, source / "model.safetensors")
    with pytest.raises(QuantizedCheckpointError, match="I8"):
        write_gguf(source, tmp_path / "m2.gguf", "F16")
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(PickleRefusedError):
        write_gguf(source, tmp_path / "m3.gguf", "F16")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/../../x.safetensors"])
def test_shards_outside_the_directory_are_refused(tmp_path: Path, llama: Path, name: str) -> None:
    source = copy_checkpoint(llama, tmp_path / "hf")
    (source / "model.safetensors").rename(tmp_path / "model.safetensors")
    index = {"weight_map": {"model.norm.weight": name}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnsafePathError):
        write_gguf(source, tmp_path / "m.gguf", "F16")


def test_refusals_of_arguments(tmp_path: Path, llama: Path) -> None:
    with pytest.raises(UsageError, match="Q4_K"):
        write_gguf(llama, tmp_path / "m.gguf", "Q4_K")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"llama\.block_count"):
        write_gguf(llama, tmp_path / "m.gguf", "F16", metadata=GgufMetadata(extra={"llama.block_count": 1}))
    with pytest.raises(UsageError, match="nan"):
        write_gguf(llama, tmp_path / "m.gguf", "F16", metadata=GgufMetadata(extra={"x": float("nan")}))
    with pytest.raises(StorageError):
        write_gguf(llama, tmp_path / "none" / "m.gguf", "F16")
