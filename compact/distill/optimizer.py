"""AdamW with a learning rate for each weight matrix."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

import torch

from compact.pruning.recover_options import RelativeRates

# Key of a parameter group: its peak learning rate.
PEAK = "peak"
_BETAS = (0.9, 0.95)


def make_optimizer(
    parameters: Iterable[torch.nn.Parameter],
    rates: float | RelativeRates,
    embeddings: Iterable[torch.nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """Return AdamW without weight decay, because the weights should stay close to their initial values.

    The learning rate of every group is 0. Its peak is under `PEAK`.

    Args:
        parameters: the parameters, with their initial values.
        rates: one rate for all, or rates that are multiplied by the root mean square of each matrix. Vectors (norms and
            biases) then get the median of the matrices, because their own values differ by orders of magnitude.
        embeddings: those of the parameters that are the embedding or the LM head.
    """
    chosen = list(parameters)
    peaks = [rates] * len(chosen) if isinstance(rates, float) else _relative(chosen, rates, embeddings)
    groups = [
        {"params": [one for one, own in zip(chosen, peaks, strict=True) if own == peak], PEAK: peak}
        for peak in dict.fromkeys(peaks)
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=_BETAS, weight_decay=0.0, fused=True)


def _relative(
    parameters: list[torch.nn.Parameter], rates: RelativeRates, embeddings: Iterable[torch.nn.Parameter]
) -> list[float]:
    sizes = [float(one.detach().square().mean().sqrt()) if one.ndim > 1 else 0.0 for one in parameters]
    known = [size for size in sizes if size > 0]
    median = statistics.median(known) if known else 1.0
    ids = {id(one) for one in embeddings}
    return [
        (rates.embeddings if id(one) in ids else rates.weights) * (size or median)
        for one, size in zip(parameters, sizes, strict=True)
    ]
