"""Sizes of a GGUF from a config.json alone, beside the file that the writer makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compact.architectures.table import FAMILIES
from compact.base.files import read_json_object
from compact.checkpoints.gguf_file import VALUES_START, read_gguf
from compact.checkpoints.names import CONFIG
from compact.pruning.budget import Sizes
from exporters.gguf.estimate import estimated_sizes
from exporters.gguf_writer.write import write_gguf
from exporters.llamacpp.quant_types import predict_types
from tests.checkpoints import train_tokenizer, write_checkpoint
from tests.family_models import VARIANTS


@pytest.fixture(scope="module")
def tokenizer() -> dict[str, Any]:
    return train_tokenizer()


@pytest.mark.parametrize("architecture", VARIANTS)
def test_tensors_are_those_of_the_file(architecture: str, tmp_path: Path, tokenizer: dict[str, Any]) -> None:
    family = next(family for family in FAMILIES if family.architecture == architecture)
    for n, settings in enumerate(VARIANTS[architecture].values()):
        folder = write_checkpoint(tmp_path / str(n), family.model_type, tokenizer=tokenizer, **settings)
        config = read_json_object(folder / CONFIG)
        write_gguf(folder, tmp_path / f"{n}.gguf", "Q8_0")
        file = read_gguf(tmp_path / f"{n}.gguf")
        sizes = Sizes(config["vocab_size"], config["intermediate_size"])
        estimated = estimated_sizes(config, family, "Q8_0")
        # Factors of llama3's rotary positions are the one tensor that no checkpoint holds.
        stored = {name: tensor.n_bytes for name, tensor in file.tensors.items() if name != "rope_freqs.weight"}
        assert {each.tensor.name: each.n_bytes for each in estimated.file_tensors(sizes)} == stored
        # What is estimated is the head, and that only.
        head = file.values_end - VALUES_START
        assert abs(estimated.file_bytes(sizes) - (tmp_path / f"{n}.gguf").stat().st_size) < head + 10_000


def test_a_smaller_vocabulary_and_ffn_are_smaller_by_their_rows_and_channels() -> None:
    family = next(family for family in FAMILIES if family.architecture == "LlamaForCausalLM")
    config = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
    config |= {"num_key_value_heads": 2, "vocab_size": 5000, "tie_word_embeddings": False}
    model = estimated_sizes(config, family, "Q8_0")
    before, after = Sizes(5000, 256), Sizes(4000, 224)
    own, left = (sum(each.n_bytes for each in model.file_tensors(sizes)) for sizes in (before, after))
    gone = own - left
    assert gone == (2 * 1000 * 64 + 3 * 3 * 32 * 64) * 34 // 32
    assert model.file_bytes(before) - model.file_bytes(after) > gone  # tokens have a text too


def test_types_are_the_quantizers() -> None:
    """A mixture is laid over the configuration's tensors as over a checkpoint's."""
    family = next(family for family in FAMILIES if family.architecture == "LlamaForCausalLM")
    config = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 8}
    config |= {"num_key_value_heads": 2, "vocab_size": 1024, "tie_word_embeddings": True}
    model = estimated_sizes(config, family, "Q4_K_M", embedding_quant="IQ4_NL")
    types = {each.tensor.name: each.type for each in model.file_tensors(Sizes(1024, 1024))}
    assert types["token_embd.weight"] == "IQ4_NL"
    assert types["blk.0.attn_norm.weight"] == "F32"
    assert {types[f"blk.{n}.ffn_down.weight"] for n in range(8)} == {"Q4_K", "Q6_K"}
    assert list(predict_types(model.shape, "Q4_K_M")) == []  # no tensor but the checkpoint's
