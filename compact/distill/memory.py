"""Estimate the memory that training needs, and compare it with the free memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compact.base.devices import free_memory
from compact.base.distributed import local_world_size
from compact.base.errors import ToolUnavailableError
from compact.distill.padding import padded_length
from compact.pruning.budget import Sizes
from compact.pruning.recover_options import BRANCHES, PIECE_TOKENS
from compact.pruning.sizes import parts_at
from compact.sources.model_source import ModelSource

if TYPE_CHECKING:
    import torch

# For each trained float32 weight, there are a gradient, the two moments of AdamW, and the best weight so far, in the
# type of the file. During evaluation and writing, there are no gradients, but a copy of the weights.
_BYTES_PER_TRAINED = 14
# Memory that the layers keep for the backward pass, per position and per channel of the hidden state and of the FFN.
# Measured on a CPU with smollm2-135m, pruned by 20% (30 layers, 576 + 1,248 channels, bfloat16 products) and fused
# attention.
_BYTES_PER_ACTIVATION = 32
# The same, of the attention: per pair of positions of a text and per head. With batches of 4 texts, the peak of the
# same model was 7.9 GB, 0.5 GB of which are Python and PyTorch.
_BYTES_PER_SCORE = 12
# Padded length of a text with its branches. With a pruned vocabulary, a piece has at most 10% more tokens than
# PIECE_TOKENS. A branch has two to three positions.
_POSITIONS = padded_length(PIECE_TOKENS * 11 // 10 + 5 * BRANCHES // 2)


def trained_and_all(source: ModelSource, sizes: Sizes, train: str) -> tuple[int, int]:
    """Return the number of trained parameters, and of all parameters of the pruned model."""
    student = parts_at(source, sizes)
    return (student.total if train == "all" else student.vocabulary), student.total


def needed_memory(source: ModelSource, sizes: Sizes, dtype: torch.dtype, train: str, batch_size: int) -> int:
    """Estimate the memory that one training process needs, in bytes.

    Args:
        source: the teacher.
        sizes: sizes of the pruned model.
        dtype: compute type, which is also the type of the teacher's weights.
        train: the weights to train, `all` or `embeddings`.
        batch_size: number of texts per forward pass.
    """
    trained, student = trained_and_all(source, sizes, train)
    # The gradients of head and embedding are computed separately. Both are in memory when they are added.
    head = 4 * sizes.vocab_size * source.hidden_size
    positions = batch_size * min(_POSITIONS, source.max_positions)
    heads = int(source.config["num_attention_heads"]) * len(source.ffn_widths)
    scores = positions * min(_POSITIONS, source.max_positions) * heads * _BYTES_PER_SCORE
    channels = sum(source.hidden_size + sizes.intermediate_size * width for width in source.ffn_widths)
    weights = 4 * student + _BYTES_PER_TRAINED * trained + head + dtype.itemsize * source.n_params
    return weights + positions * channels * _BYTES_PER_ACTIVATION + scores


def needed_and_free(
    source: ModelSource, sizes: Sizes, device: str, dtype: torch.dtype, train: str, batch_size: int
) -> tuple[int, int]:
    """Return the estimated bytes that all training processes on this machine need, and the free bytes."""
    needed = needed_memory(source, sizes, dtype, train, batch_size)
    return needed * (1 if device == "cuda" else local_world_size()), free_memory(device)


def require_memory(
    source: ModelSource, sizes: Sizes, device: str, dtype: torch.dtype, train: str, batch_size: int
) -> None:
    """Raise ToolUnavailableError if a run would need more memory than is free, and be killed after hours of work."""
    needed, free = needed_and_free(source, sizes, device, dtype, train, batch_size)
    if needed > free:
        raise ToolUnavailableError(
            f"--recover distill needs about {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free",
            "use a machine with more memory" + (", or --train embeddings" if train == "all" else ""),
        )
