"""Ridge least squares of a matrix whose inputs lost channels: the algebra of repair, one matrix at a time.

A linear layer y = W x, of which only the input channels S stay, is replaced by the W' that minimises

    ||X W^T - X_S W'^T||^2 + l ||W' - W_S||^2

over the positions X. Its normal equations need H = X^T X alone: (H_SS + l I) W'^T = H_S W^T + l W_S^T, where H_S are
the rows of H that stay. The pull towards the original columns W_S keeps what the positions say nothing about.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def ridge_solutions(
    gram: torch.Tensor, weight: torch.Tensor, kept: Sequence[int], ridges: Sequence[float]
) -> Iterator[tuple[float, torch.Tensor]]:
    """(ridge, W') for every ridge under which the equations can be solved, one after another.

    Args:
        gram: H, float64 [I, I], symmetric.
        weight: W, float64 [hidden, I], on the same device.
        kept: the channels S, ascending.
        ridges: l as multiples of the mean diagonal of H_SS, each above 0.

    Yields:
        W', float64 [hidden, len(kept)]. A ridge that leaves H_SS not positive definite is left out, as is all where
        the channels never fire (a mean diagonal of 0) or H holds what is no number.
    """
    import torch

    index = torch.tensor(kept, dtype=torch.int64, device=gram.device)
    rows = gram[index]
    square = rows[:, index]
    mean = float(square.diagonal().mean())
    if not 0 < mean < float("inf"):
        return
    target = rows @ weight.T
    original = weight[:, index].T
    for ridge in ridges:
        shifted = square.clone()
        shifted.diagonal().add_(ridge * mean)
        factor, info = torch.linalg.cholesky_ex(shifted)
        del shifted
        if int(info) == 0:
            yield ridge, torch.cholesky_solve(target + ridge * mean * original, factor).T


def output_error(inputs: torch.Tensor, outputs: torch.Tensor, weight: torch.Tensor, kept: Sequence[int]) -> float:
    """||Y - X_S W'^T||^2, summed over all positions in float64.

    Args:
        inputs: X [n, I]. outputs: Y [n, hidden], what the whole matrix gives for them.
        weight: W' [hidden, len(kept)]. kept: S.
    """
    import torch

    index = torch.tensor(kept, dtype=torch.int64, device=inputs.device)
    total = 0.0
    for start in range(0, inputs.shape[0], 1024):  # bounds what is widened at once
        part = inputs[start : start + 1024, index].to(weight.dtype)
        total += float((outputs[start : start + 1024].to(weight.dtype) - part @ weight.T).square().sum())
    return total
