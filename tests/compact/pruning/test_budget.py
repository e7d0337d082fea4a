"""What a ratio and explicit sizes mean, on models of many shapes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compact.base.errors import BudgetError
from compact.pruning.budget import Limits, Sizes, count_parts, explicit_sizes, part_of, sizes_for_ratio
from compact.pruning.importance import vocabulary_grid
from compact.sources.model_source import open_directory
from tests.checkpoints import write_checkpoint
from tests.compact.budgets import SHAPES, parts_of, removed


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.2, 0.35, 0.5])
@pytest.mark.parametrize(("grid", "multiple"), [(32, 1), (256, 1), (32, 64)])
def test_a_ratio_is_reached_on_real_shapes(name: str, ratio: float, grid: int, multiple: int) -> None:
    vocab, inner, hidden, layers, tied, kv = SHAPES[name]
    parts = parts_of(vocab, inner, hidden, layers, tied=tied, kv=kv)
    limits = Limits(vocab, inner, 300, grid, multiple)
    sizes = sizes_for_ratio(ratio, parts, limits)
    assert abs(removed(sizes, parts, limits) - ratio) <= 0.005
    assert sizes.intermediate_size % grid == 0 or sizes.intermediate_size == inner
    assert sizes.vocab_size % multiple == 0
    assert 300 <= sizes.vocab_size <= vocab
    assert 0 < sizes.intermediate_size <= inner


def test_small_models_lose_vocabulary_and_large_ones_channels() -> None:
    """The scale-adaptive lever: of what is removed, the vocabulary's part shrinks as the model grows."""
    shares = []
    for vocab, inner, hidden, layers, tied, kv in SHAPES.values():
        parts = parts_of(vocab, inner, hidden, layers, tied=tied, kv=kv)
        sizes = sizes_for_ratio(0.2, parts, Limits(vocab, inner, 300, 32))
        rows = (vocab - sizes.vocab_size) * parts.per_row
        shares.append(rows / (rows + (inner - sizes.intermediate_size) * parts.per_channel))
    smollm2, qwen, gemma, llama8, llama70 = shares
    assert min(qwen, gemma) > smollm2 > llama8 > llama70


@given(
    vocab=st.integers(400, 300_000),
    inner=st.integers(32, 30_000),
    hidden=st.sampled_from([64, 576, 1152, 4096, 8192]),
    layers=st.integers(1, 80),
    tied=st.booleans(),
    ratio=st.floats(0.001, 0.999),
    grid=st.sampled_from([1, 32, 256]),
    multiple=st.sampled_from([1, 8, 64]),
)
def test_a_ratio_is_reached_or_refused(
    vocab: int, inner: int, hidden: int, layers: int, tied: bool, ratio: float, grid: int, multiple: int
) -> None:
    parts = parts_of(vocab, inner, hidden, layers, tied=tied)
    limits = Limits(vocab, inner, 259, grid, multiple)
    try:
        sizes = sizes_for_ratio(ratio, parts, limits)
    except BudgetError as error:
        # A refusal must be true. Rows are a fine grid: where one row is little and the limits leave room, no excuse.
        most = (vocab - 259 - 2 * multiple) * parts.per_row
        coarse = multiple * parts.per_row / parts.total > 0.005
        assert ratio * parts.total > most or coarse, error
        return
    assert abs(removed(sizes, parts, limits) - ratio) <= 0.005
    assert sizes.intermediate_size % grid == 0 or sizes.intermediate_size == inner
    assert sizes.vocab_size % multiple == 0
    assert 259 <= sizes.vocab_size <= vocab
    assert 0 < sizes.intermediate_size <= inner


@pytest.mark.parametrize("ratio", [-0.1, 0.0, 1.0, 1.5, float("nan"), float("inf")])
def test_a_ratio_out_of_range(ratio: float) -> None:
    with pytest.raises(BudgetError, match="out of range"):
        sizes_for_ratio(ratio, parts_of(1000, 96, 64, 2), Limits(1000, 96, 300, 32))


def test_a_ratio_that_vocabulary_and_ffn_cannot_give() -> None:
    parts = parts_of(1000, 96, 64, 2)
    with pytest.raises(BudgetError, match=r"at most 0\.52"):
        sizes_for_ratio(0.9, parts, Limits(1000, 96, 300, 32))


def test_an_ffn_narrower_than_the_grid_stays_whole() -> None:
    parts = parts_of(2000, 16, 64, 2)
    limits = Limits(2000, 16, 300, 32)
    most = 1700 * 64 / parts.total
    sizes = sizes_for_ratio(most - 0.004, parts, limits)
    assert sizes.intermediate_size == 16
    assert abs(removed(sizes, parts, limits) - (most - 0.004)) <= 0.005


def test_explicit_sizes_off_the_grid_name_their_neighbours() -> None:
    limits = Limits(1000, 1536, 300, 256, 64)
    with pytest.raises(BudgetError, match=r"--intermediate-size 1000: .* multiple of 256") as caught:
        explicit_sizes(None, 1000, limits)
    assert caught.value.hint == "the nearest multiples are 768, 1024"
    with pytest.raises(BudgetError, match="500: not a multiple of --pad-vocab-to-multiple-of 64") as caught:
        explicit_sizes(500, None, limits)
    assert caught.value.hint == "the nearest multiples are 448 and 512"


@pytest.mark.parametrize(
    ("vocab_size", "inner", "message"),
    [
        (299, None, "--vocab-size 299: this model accepts 300 to 1000"),
        (1001, None, "--vocab-size 1001: this model accepts 300 to 1000"),
        (0, None, "300 to 1000"),
        (None, 0, "--intermediate-size 0: this model accepts 1 to 1536"),
        (None, 1568, "--intermediate-size 1568: this model accepts 1 to 1536"),
        (None, -32, "1 to 1536"),
    ],
)
def test_explicit_sizes_out_of_range(vocab_size: int | None, inner: int | None, message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        explicit_sizes(vocab_size, inner, Limits(1000, 1536, 300, 32))


def test_a_size_that_is_not_given_stays() -> None:
    limits = Limits(1000, 1536, 300, 32)
    assert explicit_sizes(500, None, limits) == Sizes(500, 1536)
    assert explicit_sizes(None, 1024, limits) == Sizes(1000, 1024)
    # Rows are dropped, never invented.
    assert explicit_sizes(None, 1024, Limits(1000, 1536, 300, 32, 64)) == Sizes(960, 1024)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_every_tensor_is_counted_once(tmp_path: Path, family: str, tied: bool) -> None:
    """Against Transformers' own count."""
    from transformers import AutoModelForCausalLM

    directory = write_checkpoint(tmp_path / "m", family, tie_word_embeddings=tied)
    source = open_directory(directory, name="m", origin="m")
    parts = count_parts(source.tensors, source.config)
    model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True)
    assert parts.total == source.n_params == model.num_parameters()
    assert parts.vocabulary == source.vocab_size * 64 * (1 if tied else 2)
    assert parts.ffn == sum(p.numel() for p in model.model.layers[0].mlp.parameters()) * 2
    assert parts.attention == sum(p.numel() for p in model.model.layers[0].self_attn.parameters()) * 2
    assert (parts.norms, parts.other) == (5 * 64, 0)
    assert sum(parts.as_dict().values()) == 2 * parts.total


def test_parts_by_name() -> None:
    assert part_of("model.layers.0.self_attn.q_norm.weight") == "norms"
    assert part_of("model.layers.0.self_attn.q_proj.bias") == "attention"
    assert part_of("model.something.else") == "other"


@given(vocab=st.integers(300, 300_000), smallest=st.integers(1, 300), asked=st.none() | st.integers(300, 300_000))
def test_the_grid_of_scores_is_short_and_holds_what_was_asked(vocab: int, smallest: int, asked: int | None) -> None:
    edges = vocabulary_grid(vocab, smallest, asked)
    assert list(edges) == sorted(set(edges))
    assert len(edges) <= 65
    assert vocab in edges
    assert asked is None or asked in edges
