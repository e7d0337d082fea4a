"""What a training needs: bytes of memory, and bytes on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compact.base.devices import free_memory
from compact.base.distributed import local_world_size
from compact.base.errors import ToolUnavailableError
from compact.distill.padding import padded_length
from compact.pruning.budget import Sizes
from compact.pruning.recover_options import PIECE_TOKENS
from compact.pruning.sizes import parts_at
from compact.sources.model_source import ModelSource

if TYPE_CHECKING:
    import torch

# AdamW over float32: a gradient and two moments beside each trained weight; where there are no gradients, as the model
# is judged and written, there is a copy of the weights.
_BYTES_PER_TRAINED = 12
# What the layers keep for the way back, for every position and for every channel of the hidden state and of the FFN.
# Measured: the training of smollm2-135m cut by 20% (30 layers, 576 + 1,280 channels, batches of 2 texts, bfloat16
# products, CPU) had a peak of 4.2 GB, 2.0 GB above what is counted for weights, moments, gradients and the teacher.
_BYTES_PER_ACTIVATION = 32
# Positions of a text, padded: a pruned vocabulary cuts a piece into a tenth more tokens than PIECE_TOKENS at most.
_POSITIONS = padded_length(PIECE_TOKENS * 11 // 10)


def trained_and_all(source: ModelSource, sizes: Sizes, train: str) -> tuple[int, int]:
    """How many parameters are trained, and how many the pruned model has."""
    student = parts_at(source, sizes)
    return (student.total if train == "all" else student.vocabulary), student.total


def needed_memory(source: ModelSource, sizes: Sizes, dtype: torch.dtype, train: str, batch_size: int) -> int:
    """Bytes that one process of a training takes, about.

    Args:
        source: the teacher.
        sizes: of the pruned model.
        dtype: in which matrices are multiplied, and the teacher's.
        train: which weights.
        batch_size: texts that go through the layers together.
    """
    trained, student = trained_and_all(source, sizes, train)
    # The head's gradient is made apart from the embedding's, and both are there as they are added.
    head = 4 * sizes.vocab_size * source.hidden_size
    positions = batch_size * min(_POSITIONS, source.max_positions)
    channels = sum(source.hidden_size + sizes.intermediate_size * width for width in source.ffn_widths)
    weights = 4 * student + _BYTES_PER_TRAINED * trained + head + dtype.itemsize * source.n_params
    return weights + positions * channels * _BYTES_PER_ACTIVATION


def needed_and_free(
    source: ModelSource, sizes: Sizes, device: str, dtype: torch.dtype, train: str, batch_size: int
) -> tuple[int, int]:
    """Bytes that the processes of a training on this machine take, about, and bytes that are free for them."""
    needed = needed_memory(source, sizes, dtype, train, batch_size)
    return needed * (1 if device == "cuda" else local_world_size()), free_memory(device)


def require_memory(
    source: ModelSource, sizes: Sizes, device: str, dtype: torch.dtype, train: str, batch_size: int
) -> None:
    """Refuse a run that would be killed for memory after an hour. Raises ToolUnavailableError."""
    needed, there = needed_and_free(source, sizes, device, dtype, train, batch_size)
    if needed > there:
        raise ToolUnavailableError(
            f"--recover distill needs about {needed / 1e9:.1f} GB, {there / 1e9:.1f} GB are free",
            "use a machine with more memory" + (", or --train embeddings" if train == "all" else ""),
        )
