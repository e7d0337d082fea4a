"""Figures of a GGUF for a search: weights per token beside Transformers, memory beside llama.cpp's server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.common import recorded
from compact.architectures.table import family_of
from compact.base.cache import Cache
from compact.pruning.budget import Sizes
from compact.pruning.context import Context
from compact.pruning.options import PruneOptions
from compact.pruning.ranking import rank_vocabulary
from compact.sources.model_source import ModelSource, open_directory
from exporters.format_values import SizeRequest
from exporters.gguf.artifact_sizes import GgufArtifactSizes
from exporters.gguf.estimate import estimated_sizes
from exporters.gguf.format import GgufFormat
from targets.profile import load_profile
from tests.checkpoints import write_checkpoint

ROWS = recorded("memory-estimate")["rows"]


@pytest.mark.parametrize("row", ROWS, ids=[f"{row['name']}, {row['context']}" for row in ROWS])
def test_memory_is_within_a_tenth_of_what_was_resident(row: dict[str, Any]) -> None:
    config, measured = row["config"], row["measured"]
    family = family_of(config, "config.json")
    embedding = "IQ4_NL" if row["quant"] == "IQ4_NL" else None
    model = estimated_sizes(config, family, row["quant"], embedding_quant=embedding, merges=row["merges"])
    figures = GgufArtifactSizes(model, config, family, measured["isa"], row["merges"])
    sizes = Sizes(row["vocab_size"], row["intermediate_size"])
    assert figures.memory_bytes(sizes, row["context"]) == pytest.approx(measured["peak_rss"], rel=0.1)
    assert figures.kv_bytes(row["context"]) == pytest.approx(measured["buffers"]["CPU KV"], abs=1e4)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    folder = write_checkpoint(tmp_path_factory.mktemp("m") / "m", hidden_size=64, tie_word_embeddings=False)
    return open_directory(folder, name="m", origin="m")


def figures_on(target: str, source: ModelSource, cache: Path) -> GgufArtifactSizes:
    context = Context(source, PruneOptions(), Cache(cache, [], []))
    request = SizeRequest(source, context.once(rank_vocabulary), "m", "a model")
    return GgufFormat.resolve(load_profile(target), source, quant="Q8_0").sizes(request)


def test_weights_per_token_are_those_of_the_linear_layers(source: ModelSource, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(source.directory)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"}
    figures = figures_on("gguf", source, tmp_path)
    whole = Sizes(source.vocab_size, source.intermediate_size)
    assert figures.weights_per_token(whole) == sum(layer.weight.numel() for layer in layers.values())
    # Rows of the vocabulary do not count. A channel counts once in each of gate, up and down.
    fewer = Sizes(source.vocab_size - 100, source.intermediate_size - 32)
    lost = 32 * 3 * 64 * len(source.ffn_widths)
    assert figures.weights_per_token(whole) - figures.weights_per_token(fewer) == lost


def test_the_device_decides_which_matrices_are_stored_twice(source: ModelSource, tmp_path: Path) -> None:
    """llama.cpp repacks Q8_0 for Arm's dotprod, and not for AVX2. The embedding is only looked up."""
    arm, x86 = (figures_on(name, source, tmp_path) for name in ("raspberry-pi-5", "laptop-x86"))
    whole = Sizes(source.vocab_size, source.intermediate_size)
    head = source.vocab_size // 4 * 4 == source.vocab_size
    repacked = arm.weights_per_token(whole) + (source.vocab_size * 64 if head else 0)
    assert arm.memory_bytes(whole, 512) - x86.memory_bytes(whole, 512) == repacked * 34 // 32
    assert arm.file_bytes(whole) == x86.file_bytes(whole)
    assert arm.bytes_per_token(whole) == x86.bytes_per_token(whole)


def test_a_longer_context_needs_more_memory_by_its_cache(source: ModelSource, tmp_path: Path) -> None:
    figures = figures_on("gguf", source, tmp_path)
    whole = Sizes(source.vocab_size, source.intermediate_size)
    more = figures.memory_bytes(whole, 8192) - figures.memory_bytes(whole, 4096)
    cache = figures.kv_bytes(8192) - figures.kv_bytes(4096)
    assert cache > 0
    # The rest is the attention mask of one batch: float16, 512 rows.
    assert more == cache + 2 * 512 * 4096
