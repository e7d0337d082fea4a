"""Ridge least squares of a matrix whose inputs lost channels: the algebra of repair, one matrix at a time.

A linear layer y = W x, of which only the input channels S stay, is replaced by the W' that minimises

    ||X W^T - X_S W'^T||^2 + l ||W' - W_S||^2

over the positions X. Its normal equations need H = X^T X alone: (H_SS + l I) W'^T = H_S W^T + l W_S^T, where H_S are
the rows of H that stay. The pull towards the original columns W_S keeps what the positions say nothing about.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class NormalEquations:
    """What is solved for W': H_SS [k, k], H_S W^T [k, hidden] and W_S^T [k, hidden], float64, k = len(S)."""

    square: torch.Tensor
    target: torch.Tensor
    original: torch.Tensor

    @staticmethod
    def of(gram: torch.Tensor, weight: torch.Tensor, kept: Sequence[int]) -> NormalEquations:
        """The part of H that is needed, after which H can go.

        Args:
            gram: H, float64 [I, I], symmetric.
            weight: W, float64 [hidden, I], on the same device.
            kept: the channels S, ascending.
        """
        import torch

        index = torch.tensor(kept, dtype=torch.int64, device=gram.device)
        # All of H times W^T, then its rows: a copy of H's rows would be as large as H.
        return NormalEquations(
            gram[index[:, None], index[None, :]], (gram @ weight.T).index_select(0, index), weight[:, index].T
        )

    def solutions(self, ridges: Sequence[float]) -> Iterator[tuple[float, torch.Tensor]]:
        """(ridge, W') for every ridge under which the equations can be solved, one after another.

        Args:
            ridges: l as multiples of the mean diagonal of H_SS, each above 0.

        Yields:
            W', float64 [hidden, k]. A ridge that leaves H_SS not positive definite is left out, as are all where the
            channels never fire (a mean diagonal of 0). The diagonal of `square` is then that of the last ridge.
        """
        import torch

        diagonal = self.square.diagonal().clone()
        mean = float(diagonal.mean())
        if not mean > 0:
            return
        for ridge in ridges:
            # In place, from the diagonal as it was: no other copy of H_SS but its factor.
            self.square.diagonal().copy_(diagonal + ridge * mean)
            factor, info = torch.linalg.cholesky_ex(self.square)
            if int(info) == 0:
                yield ridge, torch.cholesky_solve(self.target + ridge * mean * self.original, factor).T


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
