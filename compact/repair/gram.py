"""Accumulate the Gram matrix H = X^T X of a layer's activations for least squares, in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compact.base.distributed import all_reduce_sum

if TYPE_CHECKING:
    import torch

# Number of positions whose products are summed in float32 before the sum is added in float64. It is large enough that
# the addition is cheap compared to the product, and small enough that rounding only affects float32's last digits.
_ROWS = 1024
# Columns per block. Only blocks on and above the diagonal are computed.
_COLUMNS = 512


class Gram:
    """Accumulates the sum of x x^T over all positions.

    It needs size^2 * 8 bytes for the sum, and a buffer of `_ROWS` positions. For MPS, which has no float64, the
    sum is in the host's memory.
    """

    def __init__(self, size: int, device: str = "cpu") -> None:
        """Start with a sum of zero.

        Args:
            size: I, the number of channels.
            device: torch device of the activations.
        """
        import torch

        self._size = size
        sum_device = "cpu" if device.startswith("mps") else device
        self._sum = torch.zeros((size, size), dtype=torch.float64, device=sum_device)
        self._rows: torch.Tensor | None = None
        self._filled = 0

    def add(self, x: torch.Tensor) -> None:
        """Add the positions of `x` [positions, I], of any floating type. For weighted positions, pass x * sqrt(w)."""
        import torch

        if self._rows is None:
            # CUDA's tensor cores multiply 16-bit numbers exactly and add them in float32. Torch supports this from 2.8.
            half = x.is_cuda and x.element_size() == 2 and "dtype" in torch.ops.aten.mm.overloads()  # type: ignore[no-untyped-call]
            self._rows = torch.empty((_ROWS, self._size), dtype=x.dtype if half else torch.float32, device=x.device)
        at = 0
        while at < x.shape[0]:
            count = min(_ROWS - self._filled, x.shape[0] - at)
            self._rows[self._filled : self._filled + count] = x[at : at + count]
            self._filled += count
            at += count
            if self._filled == _ROWS:
                self._flush()

    def _flush(self) -> None:
        import torch

        if self._rows is None or not self._filled:
            return
        rows = self._rows[: self._filled]
        self._filled = 0
        for start in range(0, self._size, _COLUMNS):
            stop = min(start + _COLUMNS, self._size)
            left, right = rows[:, start:stop].T, rows[:, start:]
            if rows.dtype == torch.float32:
                product = torch.mm(left, right)
            else:
                product = torch.mm(left, right, out_dtype=torch.float32)
            self._sum[start:stop, start:] += product.to(self._sum.device)

    def value(self) -> torch.Tensor:
        """Return the sum over all positions of all processes, float64 [I, I], symmetric.

        Every process must call this, once. Nothing can be added afterwards.
        """
        self._flush()
        all_reduce_sum(self._sum)
        # Only blocks on and above the diagonal were summed. Mirror them. Then release the sum, which is complete.
        for start in range(0, self._size, _COLUMNS):
            stop = min(start + _COLUMNS, self._size)
            self._sum[stop:, start:stop] = self._sum[start:stop, stop:].T
        total, self._sum = self._sum, self._sum[:0]
        return total
