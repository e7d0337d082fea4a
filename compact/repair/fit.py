"""Fit every layer's `down_proj` in one pass. The ridge of each layer is chosen on held-out text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compact.base.distributed import is_main
from compact.base.errors import EngineCrashedError
from compact.checkpoints.safetensors_file import TensorRef
from compact.checkpoints.shards import open_tensors
from compact.checkpoints.writers import TensorSpec, write_checkpoint
from compact.repair.gram import Gram
from compact.repair.least_squares import NormalEquations, output_error

if TYPE_CHECKING:
    import torch

    from compact.forward.layerwise import LayerStream
    from compact.pruning.plan import PrunePlan

# Ridges to try, as multiples of the mean diagonal of H.
RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
# Number of positions to convert to float64 at once.
_ROWS = 1024


def down_names(n_layers: int) -> list[str]:
    """Return the name of the `down_proj` weight of every layer, in order."""
    return [f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(n_layers)]


class LayerFit:
    """Fits each layer as a `compact.forward.layerwise.Visitor`.

    It sums H over the fitted sequences and stores the inputs of the held-out ones. At the end of a layer it solves the
    least squares problem and writes the new matrix.

    Attributes:
        ridges: the chosen ridge of every layer, or None if the original columns are best.
        errors: for every layer, the held-out error of the chosen matrix relative to that of the original columns.
    """

    def __init__(
        self,
        stream: LayerStream,
        n_fitted: int,
        plan: PrunePlan,
        tensors: Mapping[str, TensorRef],
        target: Path,
    ) -> None:
        """Prepare the pass.

        Args:
            stream: the layers. Its sequences are this process's fitted ones, followed by the held-out ones.
            n_fitted: number of fitted sequences.
            plan: the kept tokens and channels. Positions of dropped tokens are not part of H.
            tensors: tensors of the original checkpoint.
            target: directory for the results. Each layer's matrix is written to a subdirectory.
        """
        import torch

        self.ridges: list[float | None] = []
        self.errors: list[float] = []
        self._stream, self._kept, self._tensors, self._target = stream, plan.kept_channels, tensors, target
        self._names = down_names(stream.n_layers)
        # For each batch: the positions to sum, and the first held-out position.
        self._summed: list[torch.Tensor] = []
        self._begins: list[int] = []
        done, kept_ids = 0, torch.tensor(plan.kept_token_ids, dtype=torch.int64)
        for batch in stream.batches:
            begin = min(max(n_fitted - done, 0), batch.shape[0]) * batch.shape[1]
            ids = batch.reshape(-1)[:begin]
            self._summed.append(torch.isin(ids, kept_ids).nonzero()[:, 0].to(stream.device))
            self._begins.append(begin)
            done += batch.shape[0]
        self._gram: Gram | None = None
        self._held_out: list[torch.Tensor] = []

    def begin(self, layer: int) -> None:
        self._gram, self._held_out = Gram(self._stream.channels[layer], self._stream.device), []

    def inputs(self, layer: int, batch: int, activations: torch.Tensor) -> None:
        del layer
        assert self._gram is not None
        summed, begin = self._summed[batch], self._begins[batch]
        if len(summed):
            whole = len(summed) == activations.shape[0]
            self._gram.add(activations if whole else activations.index_select(0, summed))
        if begin < activations.shape[0]:
            self._held_out.append(activations[begin:].clone())

    def end(self, layer: int) -> None:
        import torch

        assert self._gram is not None
        name, kept = self._names[layer], self._kept[layer]
        gram, self._gram = self._gram.value(), None
        if not bool(gram.diagonal().isfinite().all()):
            raise EngineCrashedError(
                f"{name}: its inputs overflow in {self._stream.dtype}",
                "repair with --dtype float32 or bfloat16",
            )
        if not is_main():
            return
        with open_tensors(self._tensors) as read:
            weight = read(name)
        equations = NormalEquations.of(gram, weight.to(gram.device, torch.float64), kept)
        del gram
        ridge, error, chosen = choose(equations, self._held_out, weight, kept)
        self._held_out = []
        self.ridges.append(ridge)
        self.errors.append(round(error, 4))
        folder = self._target / f"{layer:05d}"
        folder.mkdir()
        spec = TensorSpec(name, self._tensors[name].dtype, tuple(chosen.shape))
        write_checkpoint(folder, [spec], lambda _spec: chosen)


def choose(
    equations: NormalEquations, held_out: Sequence[torch.Tensor], weight: torch.Tensor, kept: Sequence[int]
) -> tuple[float | None, float, torch.Tensor]:
    """Choose the ridge with the smallest held-out error for one layer.

    Args:
        equations: normal equations of the fitted positions. Solving them changes them.
        held_out: inputs [positions, I] of held-out text.
        weight: the original matrix [hidden, I], in the checkpoint's type. The result has this type too.
        kept: channels that stay, ascending.

    Returns:
        The ridge (None if the original columns are best), the squared error of the held-out outputs relative to that
        of the original columns, and the matrix [hidden, len(kept)].
    """
    import torch

    sum_device = equations.square.device
    wide = weight.to(sum_device, torch.float64)  # [hidden, I]
    inputs = torch.cat(list(held_out)).to(sum_device)  # [positions, I]
    parts = [inputs[start : start + _ROWS] for start in range(0, inputs.shape[0], _ROWS)]
    outputs = torch.cat([part.to(torch.float64) @ wide.T for part in parts])  # [positions, hidden]
    best: torch.Tensor = weight.index_select(1, torch.tensor(kept, dtype=torch.int64))
    plain = output_error(inputs, outputs, best.to(sum_device, torch.float64), kept)
    chosen, least = None, plain
    for ridge, solution in equations.solutions(RIDGES):
        rounded = solution.to(weight.dtype)
        error = output_error(inputs, outputs, rounded.double(), kept)
        # A weight that overflows in the checkpoint's type makes the error infinite or NaN. This comparison rejects it.
        if error < least:
            chosen, least, best = ridge, error, rounded.cpu()
    return chosen, least / plain if chosen is not None else 1.0, best.contiguous()
