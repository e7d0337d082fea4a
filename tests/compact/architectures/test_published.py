"""The built-in table of published models, held to the counts that they publish."""

from __future__ import annotations

import pytest

from compact.architectures.published import PublishedModel, close_names, published_model, published_models
from compact.architectures.table import FAMILIES
from compact.pruning.budget import count_config

NAMES = [model.name for model in published_models()]


def by_hand(model: PublishedModel) -> int:
    """Parameters of the language model by the layouts' own arithmetic, not through the project's tensor tables."""
    hidden, inner = model.hidden_size, model.intermediate_size
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    attention = 2 * hidden * queries + 2 * hidden * keys
    if model.family == "Qwen2.5":
        attention += queries + 2 * keys  # biases
    norms = 2 * hidden
    if model.family in ("Gemma 2", "Gemma 3"):
        norms = 4 * hidden
    if model.family in ("Qwen3", "Gemma 3"):
        norms += 2 * model.head_dim
    layer = attention + norms + 3 * hidden * inner
    return model.layers * layer + hidden + (1 if model.tied else 2) * model.vocab_size * hidden


def siglip(hidden: int) -> int:
    """Gemma 3's vision tower (SigLIP so400m, 896 x 896 pixels in patches of 14) and projector to `hidden`."""
    width, inner = 1152, 4304
    patches = (896 // 14) ** 2
    embeddings = 3 * 14 * 14 * width + width + patches * width
    layer = 4 * (width * width + width) + 2 * 2 * width + width * inner + inner + inner * width + width
    return embeddings + 27 * layer + 2 * width + width * hidden + width


@pytest.mark.parametrize("name", NAMES)
def test_every_row_counts_to_what_is_published(name: str) -> None:
    model = published_model(name)
    assert model is not None
    counted = count_config(model.config(), name).total
    assert counted == by_hand(model) == model.published - model.outside
    assert model.source.startswith("safetensors total")


@pytest.mark.parametrize("name", [model.name for model in published_models() if model.outside])
def test_what_lies_outside_the_language_model(name: str) -> None:
    model = published_model(name)
    assert model is not None
    second_head = model.vocab_size * model.hidden_size
    assert model.outside == (siglip(model.hidden_size) if model.family == "Gemma 3" else second_head)


def test_counts_that_everybody_knows() -> None:
    totals = {model.name: model.published for model in published_models()}
    assert totals["qwen2.5-0.5b"] == 494_032_768
    assert totals["llama-3.2-1b"] == 1_235_814_400
    assert totals["llama-3.1-8b"] == 8_030_261_248
    assert totals["smollm2-135m"] == 134_515_008


def test_the_table_covers_the_families() -> None:
    sizes = {
        "Qwen2.5": ["0.5b", "1.5b", "3b", "7b", "14b", "32b", "72b"],
        "Qwen3": ["0.6b", "1.7b", "4b", "8b", "14b", "32b"],
        "Llama 3": ["3-8b", "3-70b", "3.1-8b", "3.1-70b", "3.2-1b", "3.2-3b"],
        "Gemma 2": ["2b", "9b", "27b"],
        "Gemma 3": ["270m", "1b", "4b", "12b", "27b"],
        "SmolLM2": ["135m", "360m", "1.7b"],
    }
    for family, names in sizes.items():
        found = [model.name for model in published_models() if model.family == family]
        assert [name.partition("-")[2] if family == "Llama 3" else name.rpartition("-")[2] for name in found] == names
    assert len(NAMES) == len(set(NAMES)) == sum(map(len, sizes.values()))
    known = {family.architecture for family in FAMILIES}
    assert {model.architecture for model in published_models()} <= known
    assert all(model.context_length >= 8192 and "/" in model.hub_id for model in published_models())


def test_names() -> None:
    assert published_model("Llama-3.2-1B") is published_model("llama-3.2-1b") is not None
    assert published_model("llama-3.2-2b") is None
    assert "llama-3.2-1b" in close_names("llama-3.2-1")
