"""A loaded model at other sizes: its embedding, head and FFN replaced by the rows and columns that a plan keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compact.pruning.apply import cut_of


class InMemoryPruner:
    """A dense model in memory, pruned to one size after another without a checkpoint on disk.

    Modules compute with the weights that they have; their recorded sizes (`out_features`) are not looked at.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        # A padding id of the dense model may lie beyond the pruned rows; it has no part in a forward pass.
        for module in model.modules():
            if hasattr(module, "padding_idx"):
                module.padding_idx = None
        # A tied head is the same parameter, listed once under the embedding's name and replaced at both places.
        self._tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        self._whole = {name: parameter.data for name, parameter in model.named_parameters() if cut_of(name) is not None}

    def at(self, rows: Sequence[int] | None, channels: Sequence[Sequence[int]] | None) -> Any:
        """The model with these embedding rows and FFN channels of each layer; None keeps all."""
        import torch

        device = self._model.device
        chosen_rows = None if rows is None else torch.tensor(rows, dtype=torch.int64, device=device)
        for name, whole in self._whole.items():
            cut = cut_of(name)
            assert cut is not None
            dim, layer = cut
            chosen = chosen_rows
            if layer is not None:
                chosen = None if channels is None else torch.tensor(channels[layer], dtype=torch.int64, device=device)
            value = whole if chosen is None else whole.index_select(dim, chosen)
            owner, _, attribute = name.rpartition(".")
            setattr(self._model.get_submodule(owner), attribute, torch.nn.Parameter(value, requires_grad=False))
        if self._tied:
            self._model.get_output_embeddings().weight = self._model.get_input_embeddings().weight
        return self._model
