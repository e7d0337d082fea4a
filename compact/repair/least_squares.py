"""Ridge least squares for a matrix whose input channels are pruned. This is the algebra of repair, for one matrix.

A linear layer y = W x keeps only the input channels S. Its matrix is replaced by the W' that minimises

    ||X W^T - X_S W'^T||^2 + l ||W' - W_S||^2

over the positions X. The normal equations only need H = X^T X:

    (H_SS + l I) W'^T = H_S W^T + l W_S^T

H_S are the rows of H for the kept channels. The ridge pulls W' to the original columns W_S in directions that the
positions do not determine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class NormalEquations:
    """The normal equations for W', in float64. k is the number of kept channels.

    Attributes:
        square: H_SS [k, k].
        target: H_S W^T [k, hidden].
        original: W_S^T [k, hidden].
    """

    square: torch.Tensor
    target: torch.Tensor
    original: torch.Tensor

    @staticmethod
    def of(gram: torch.Tensor, weight: torch.Tensor, kept: Sequence[int]) -> NormalEquations:
        """Set up the equations. They do not keep a reference to H, so that it can be freed.

        Args:
            gram: H, float64 [I, I], symmetric.
            weight: W, float64 [hidden, I], on the same device.
            kept: the channels S, ascending.
        """
        import torch

        index = torch.tensor(kept, dtype=torch.int64, device=gram.device)
        # Multiply all of H, then select rows of the product. Selecting first would copy almost all of H.
        return NormalEquations(
            gram[index[:, None], index[None, :]], (gram @ weight.T).index_select(0, index), weight[:, index].T
        )

    def solutions(self, ridges: Sequence[float]) -> Iterator[tuple[float, torch.Tensor]]:
        """Solve the equations for several ridges, one after another. This changes the diagonal of `square`.

        Args:
            ridges: values of l as multiples of the mean diagonal of H_SS, each above 0.

        Yields:
            The ridge, and W' as float64 [hidden, k]. A ridge is skipped if H_SS + l I is not positive definite. All are
            skipped if the channels are never active (the mean of the diagonal is 0).
        """
        import torch

        diagonal = self.square.diagonal().clone()
        mean = float(diagonal.mean())
        if not mean > 0:
            return
        for ridge in ridges:
            # Change the diagonal in place, so that the Cholesky factor is the only copy of H_SS.
            self.square.diagonal().copy_(diagonal + ridge * mean)
            factor, info = torch.linalg.cholesky_ex(self.square)
            if int(info) == 0:
                yield ridge, torch.cholesky_solve(self.target + ridge * mean * self.original, factor).T  # [hidden, k]


def output_error(inputs: torch.Tensor, outputs: torch.Tensor, weight: torch.Tensor, kept: Sequence[int]) -> float:
    """Compute the squared error ||Y - X_S W'^T||^2 over all positions.

    Args:
        inputs: X [positions, I].
        outputs: Y [positions, hidden], the outputs of the original matrix.
        weight: W' [hidden, k]. The products are computed in its type.
        kept: the channels S, ascending.
    """
    import torch

    index = torch.tensor(kept, dtype=torch.int64, device=inputs.device)
    total = 0.0
    for start in range(0, inputs.shape[0], 1024):  # in steps, to bound the copies in the wider type
        part = inputs[start : start + 1024, index].to(weight.dtype)  # [up to 1024, k]
        total += float((outputs[start : start + 1024].to(weight.dtype) - part @ weight.T).square().sum())
    return total
