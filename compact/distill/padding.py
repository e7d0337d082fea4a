"""Batches of texts of different lengths, padded to few different shapes.

oneDNN compiles a kernel for every shape of a bfloat16 product, and it and PyTorch keep a thousand of them, half a
megabyte and more each: with a shape of its own for every length, hours of training fill gigabytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Of 450 tokens, the usual length, 3% are padding then.
_STEP = 32


def padded_length(length: int) -> int:
    """The length that texts of this length are padded to."""
    return -(-length // _STEP) * _STEP


def padded_batch(sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    """int64 [B, T]: the ids with zeros behind them, where a causal model's earlier positions do not see them."""
    import torch

    batch = torch.zeros(len(sequences), padded_length(max(map(len, sequences))), dtype=torch.int64)
    for row, ids in enumerate(sequences):
        batch[row, : len(ids)] = torch.tensor(ids)
    return batch
