"""Check whether a repair helps, by bits per byte of the pruned model with and without it on held-out text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compact.base.devices import free_memory, resolve_device, resolve_dtype
from compact.calibration.calibration_set import HeldOut
from compact.calibration.held_out import TokenizedTexts, named_texts
from compact.forward.evaluate import DEFAULT_WINDOW
from compact.forward.load import load_model
from compact.pruning.context import Context
from compact.pruning.in_memory import InMemoryPruner
from compact.pruning.plan import PrunePlan
from compact.pruning.sizes import parts_at
from compact.sources.model_source import ModelSource

if TYPE_CHECKING:
    import torch

# Number of bytes to score of each held-out text. This is enough to see a difference, and takes only seconds.
TEXT_BYTES = 8192
# Share of the free memory that the model may use.
_MEMORY_SHARE = 0.8


@dataclass(frozen=True)
class Verdict:
    """The result of a check.

    Attributes:
        share: the share of the change to apply. It is 0 if every share made at least one text worse.
        plain: bits per byte of the model without repair, by the name of the text.
        repaired: bits per byte of the model with this share of the change, by the name of the text. If the share is 0,
            these are the values of the last share that was tried.
    """

    share: float
    plain: Mapping[str, float]
    repaired: Mapping[str, float]


@dataclass(frozen=True)
class Change:
    """New weights that can be applied in part.

    Attributes:
        tensor: returns the tensor to write, given its name and the share of the change.
        names: names of the tensors that change.
        shares: the shares to try, in this order.
    """

    tensor: Callable[[str, float], torch.Tensor]
    names: tuple[str, ...]
    shares: tuple[float, ...]


def fits_in_memory(source: ModelSource, plan: PrunePlan, device: str, dtype: str) -> bool:
    """Return whether the dense model and its pruned embedding, LM head and FFN fit in the free memory together."""
    place = resolve_device(device)
    cut = parts_at(source, plan.sizes)
    needed = (source.n_params + cut.vocabulary + cut.ffn) * resolve_dtype(dtype, place).itemsize
    return needed <= _MEMORY_SHARE * free_memory(place)


def check_repair(
    context: Context, plan: PrunePlan, tokenizer_dir: Path, held_out: Sequence[HeldOut], change: Change
) -> Verdict:
    """Try shares of a change until one does not make any text worse.

    Args:
        context: the checkpoint, the device and the type.
        plan: the plan, without repair.
        tokenizer_dir: directory of the pruned tokenizer.
        held_out: the texts to evaluate on.
        change: the new weights, and the shares to try.
    """
    import torch

    source, progress = context.source, context.progress
    place = resolve_device(context.options.device)
    whole = load_model(source.directory, device=place, dtype=resolve_dtype(context.options.dtype, place))
    model = InMemoryPruner(whole).at(plan.kept_token_ids, plan.kept_channels)
    window = min(DEFAULT_WINDOW, source.max_positions)
    texts = TokenizedTexts(named_texts(held_out, TEXT_BYTES), tokenizer_dir, window=window)

    def bits(label: str) -> dict[str, float]:
        found = texts.evaluate(model, progress=progress, label=label)
        return {name: one.bits_per_byte for name, one in found.items()}

    plain = bits("evaluating the pruned model")
    repaired: Mapping[str, float] = plain
    parameters = dict(model.named_parameters())
    for share in change.shares:
        with torch.no_grad():
            for name in change.names:
                parameters[name].copy_(change.tensor(name, share))
        repaired = bits("evaluating the repair")
        if all(repaired[name] <= plain[name] for name in plain):
            return Verdict(share, plain, repaired)
    return Verdict(0.0, plain, repaired)
