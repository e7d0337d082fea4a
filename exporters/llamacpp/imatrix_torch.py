"""Measures an importance matrix of a checkpoint with Transformers. The sums equal those of `llama-imatrix`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compact.architectures.family import Family
from compact.architectures.value_order import value_order
from compact.base.devices import resolve_device, resolve_dtype
from compact.base.errors import CalibrationError, EngineCrashedError
from compact.base.progress import SILENT, Progress
from compact.forward.load import load_model
from exporters.llamacpp.imatrix import Imatrix

if TYPE_CHECKING:
    import torch

# Positions that are converted to float64 at a time. This limits the memory for wide matrices.
_ROWS_AT_ONCE = 256
_HEAD = "lm_head"


class _Sums:
    """Sums of squares of each matrix's inputs."""

    def __init__(self) -> None:
        self.values: dict[str, NDArray[np.float64]] = {}
        self.tokens: dict[str, int] = {}
        # q, k and v (and gate and up) share one input tensor, so its squares are summed once.
        self._last: tuple[torch.Tensor, NDArray[np.float64]] | None = None

    def add(self, name: str, inputs: torch.Tensor) -> None:
        """Add the inputs [..., n_in] of matrix `name`."""
        if self._last is None or self._last[0] is not inputs:
            self._last = (inputs, _sum_of_squares(inputs))
        squares = self._last[1]
        self.values[name] = self.values[name] + squares if name in self.values else squares
        self.tokens[name] = self.tokens.get(name, 0) + inputs.numel() // inputs.shape[-1]

    def release_last(self) -> None:
        """Release the last inputs."""
        self._last = None


def collect(
    model_dir: Path,
    sequences: Sequence[Sequence[int]],
    *,
    family: Family,
    device: str = "auto",
    dtype: str = "auto",
    head: bool = True,
    source_id: str = "",
    progress: Progress = SILENT,
) -> Imatrix:
    """Run a checkpoint over sequences and average the squared inputs of every linear map.

    Args:
        model_dir: a checkpoint directory.
        sequences: token ids. Each sequence starts with an empty cache. This function adds and replaces no tokens.
            `llama-imatrix` replaces the first token of each chunk by BOS if the vocabulary uses BOS; the caller
            should do the same.
        family: gives the GGUF names.
        device, dtype: as in `compact.pruning.importance`. The sums are float64.
        head: also measure the inputs of the LM head. With tied embeddings the entry is named `token_embd.weight`,
            as llama.cpp quantises that tensor. `llama-imatrix` leaves it out, and cannot measure it if the embeddings
            are tied.
        source_id: recorded in the result.
        progress: receives the number of processed tokens.

    Raises:
        CalibrationError: there are no tokens.
        UsageError: the device is not available.
        UnsupportedArchitectureError: the family's layout does not have one of the linear maps.
        EngineCrashedError: activations overflow in this dtype.
    """
    import torch

    total = sum(len(sequence) for sequence in sequences)
    if not total:
        raise CalibrationError(
            "the calibration text has no tokens for the importance matrix", "give a longer calibration text"
        )
    place = resolve_device(device)
    model = load_model(model_dir, device=place, dtype=resolve_dtype(dtype, place))
    sums = _Sums()

    def hook(name: str) -> Any:
        def before(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            sums.add(name, inputs[0])

        return before

    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    tied = _HEAD in linear and linear[_HEAD].weight is model.get_input_embeddings().weight
    head_name = "token_embd.weight" if tied else family.gguf_name(f"{_HEAD}.weight")
    handles = [
        module.register_forward_pre_hook(hook(family.gguf_name(f"{name}.weight")))
        for name, module in linear.items()
        if name != _HEAD
    ]
    try:
        with torch.inference_mode(), progress.task("importance matrix", total, "tokens") as task:
            for sequence in sequences:
                if not len(sequence):
                    continue
                ids = torch.tensor([list(sequence)], dtype=torch.int64, device=place)
                # Run only the backbone. Its output is the input of the head, and logits would need the most memory.
                hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state  # [1, positions, hidden]
                if head:
                    sums.add(head_name, hidden)
                sums.release_last()
                task.advance(len(sequence))
    finally:
        for handle in handles:
            handle.remove()
    lengths = {len(sequence) for sequence in sequences}
    means = {name: (values / sums.tokens[name]).astype(np.float32) for name, values in sums.values.items()}
    config = model.config.to_dict()
    for name in linear:
        # The GGUF may store the inputs of a matrix in another order.
        ordered = None if name == _HEAD else value_order(family, config, f"{name}.weight")
        if ordered is not None and ordered[0] == 1:
            gguf_name = family.gguf_name(f"{name}.weight")
            means[gguf_name] = means[gguf_name][ordered[1]]
    if not all(np.isfinite(values).all() for values in means.values()):
        raise EngineCrashedError(f"{model_dir}: activations overflow in {dtype}", "use --dtype float32 or bfloat16")
    return Imatrix(
        means,
        {name: np.array([count], dtype=np.int64) for name, count in sums.tokens.items()},
        tokens=total,
        chunk_size=lengths.pop() if len(lengths) == 1 else 0,
        source_id=source_id,
    )


def _sum_of_squares(inputs: torch.Tensor) -> NDArray[np.float64]:
    import torch

    rows = inputs.reshape(-1, inputs.shape[-1])  # [positions, n_in]
    wide = torch.float32 if rows.device.type == "mps" else torch.float64  # MPS has no float64
    total = torch.zeros(rows.shape[1], dtype=wide, device=rows.device)
    for start in range(0, rows.shape[0], _ROWS_AT_ONCE):
        total += rows[start : start + _ROWS_AT_ONCE].to(wide).square_().sum(dim=0)
    result: NDArray[np.float64] = total.cpu().numpy().astype(np.float64)
    return result
