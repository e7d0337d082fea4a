"""Prune a model in memory by replacing its embedding, LM head and FFN weights with the kept rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compact.pruning.apply import cut_of


class InMemoryPruner:
    """Prunes a loaded model to one size after another, without writing a checkpoint.

    Only weights are replaced. The modules' size attributes, such as `out_features`, keep their old values. This is
    safe because a forward pass does not read them.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        # The padding id of the dense model may be out of range after pruning. A forward pass does not need it.
        for module in model.modules():
            if hasattr(module, "padding_idx"):
                module.padding_idx = None
        # A tied head shares its parameter with the embedding. `named_parameters` lists it once, so `at` must replace
        # it in both places.
        self._tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        self._whole = {name: parameter.data for name, parameter in model.named_parameters() if cut_of(name) is not None}

    def at(self, rows: Sequence[int] | None, channels: Sequence[Sequence[int]] | None) -> Any:
        """Prune the model and return it. The next call starts from the dense weights again.

        Args:
            rows: kept rows of the embedding, or None to keep all.
            channels: kept FFN channels of each layer, or None to keep all.
        """
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
