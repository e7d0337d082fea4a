"""The pass of a repair: every layer's `down_proj` fitted to the text, its ridge chosen on text that is in no sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compact.base.distributed import is_main
from compact.base.errors import EngineCrashedError
from compact.checkpoints.shards import TensorRef, TensorSpec, open_tensors, write_checkpoint
from compact.repair.gram import Gram
from compact.repair.least_squares import NormalEquations, output_error

if TYPE_CHECKING:
    import torch

    from compact.forward.layerwise import LayerStream
    from compact.pruning.plan import PrunePlan

# Multiples of the mean diagonal of H.
RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
# Positions that are widened to float64 at once.
_ROWS = 1024


def down_names(n_layers: int) -> list[str]:
    """`down_proj` of every layer, in order."""
    return [f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(n_layers)]


class LayerFit:
    """Visits the layers: sums H over the fitted sequences, keeps the held-out ones, and solves when a layer is done.

    Attributes:
        ridges: of every layer, the ridge chosen; None where the original columns are best.
        errors: of every layer, the held-out error of what is written relative to that of the plain cut.
    """

    def __init__(
        self,
        stream: LayerStream,
        n_fitted: int,
        plan: PrunePlan,
        tensors: Mapping[str, TensorRef],
        target: Path,
    ) -> None:
        """Prepare.

        Args:
            stream: the layers, over this process's fitted sequences and, behind them, the held-out ones.
            n_fitted: how many of its sequences are fitted.
            plan: what stays; positions of dropped tokens weigh nothing.
            tensors: of the original checkpoint.
            target: where each layer's matrix goes, in a directory of its own.
        """
        import torch

        self.ridges: list[float | None] = []
        self.errors: list[float] = []
        self._stream, self._kept, self._tensors, self._target = stream, plan.kept_channels, tensors, target
        self._names = down_names(stream.n_layers)
        # Of each batch, the positions that are summed, and where those that are held out begin.
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
                "repair with --dtype float32, or bfloat16",
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
    """The best of the ridges for one layer, by the error on what it was not fitted to.

    Args:
        equations: of the fitted positions; used up.
        held_out: inputs [positions, I] that they do not hold.
        weight: the original matrix [hidden, I], in the checkpoint's type; what is chosen has this type too.
        kept: channels that stay.

    Returns:
        The ridge (None where the original columns are best), the squared error of the held-out outputs relative to
        that of the original columns, and the matrix [hidden, len(kept)].
    """
    import torch

    home = equations.square.device
    wide = weight.to(home, torch.float64)
    inputs = torch.cat(list(held_out)).to(home)
    parts = [inputs[start : start + _ROWS] for start in range(0, inputs.shape[0], _ROWS)]
    outputs = torch.cat([part.to(torch.float64) @ wide.T for part in parts])
    best: torch.Tensor = weight.index_select(1, torch.tensor(kept, dtype=torch.int64))
    plain = output_error(inputs, outputs, best.to(home, torch.float64), kept)
    chosen, least = None, plain
    for ridge, solution in equations.solutions(RIDGES):
        rounded = solution.to(weight.dtype)
        error = output_error(inputs, outputs, rounded.double(), kept)
        # A number that the type cannot hold makes the error infinite or no number, and is never less.
        if error < least:
            chosen, least, best = ridge, error, rounded.cpu()
    return chosen, least / plain if chosen is not None else 1.0, best.contiguous()
