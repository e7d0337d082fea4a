"""Pad batches of texts to a small number of different shapes.

oneDNN compiles a kernel for every shape of a bfloat16 product. oneDNN and PyTorch cache a thousand of these kernels,
each of half a megabyte or more. If every length had its own shape, hours of training would fill gigabytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# With the usual length of 450 tokens, 3% are padding.
_STEP = 32


def padded_length(length: int) -> int:
    """Return the length that texts of this length are padded to."""
    return -(-length // _STEP) * _STEP


def padded_batch(sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return the ids as int64 [batch, padded length], padded with zeros at the end.

    In a causal model, earlier positions do not see the padding.
    """
    import torch

    batch = torch.zeros(len(sequences), padded_length(max(map(len, sequences))), dtype=torch.int64)
    for row, ids in enumerate(sequences):
        batch[row, : len(ids)] = torch.tensor(ids)
    return batch
