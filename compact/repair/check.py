"""Whether a repair helps: bits per byte of the pruned model with and without it, on text that it was not fitted to."""

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

# Of each held-out text: enough to tell the two apart, and seconds of work.
TEXT_BYTES = 8192
# Of the memory that is free, what the model may take.
_MEMORY_SHARE = 0.8


@dataclass(frozen=True)
class Verdict:
    """What the check found.

    Attributes:
        share: of the change that is kept; 0 where even the smallest was worse than the plain cut somewhere.
        plain: bits per byte of the plain cut, by text.
        repaired: those of the model with this share, by text; where the share is 0, with the smallest that was tried.
    """

    share: float
    plain: Mapping[str, float]
    repaired: Mapping[str, float]


@dataclass(frozen=True)
class Change:
    """New weights, of which a share can be taken.

    Attributes:
        tensor: the tensor of a name at a share, as it would be written.
        names: of the tensors that change.
        shares: to try, from the whole change to the smallest.
    """

    tensor: Callable[[str, float], torch.Tensor]
    names: tuple[str, ...]
    shares: tuple[float, ...]


def fits_in_memory(source: ModelSource, plan: PrunePlan, device: str, dtype: str) -> bool:
    """Whether the whole model can be loaded to be judged, and beside it what the plan cuts out of it."""
    place = resolve_device(device)
    cut = parts_at(source, plan.sizes)
    needed = (source.n_params + cut.vocabulary + cut.ffn) * resolve_dtype(dtype, place).itemsize
    return needed <= _MEMORY_SHARE * free_memory(place)


def check_repair(
    context: Context, plan: PrunePlan, tokenizer_dir: Path, held_out: Sequence[HeldOut], change: Change
) -> Verdict:
    """Try shares of a change until one is nowhere worse than the plain cut.

    Args:
        context: the checkpoint, and where and how the model runs.
        plan: the plain cut.
        tokenizer_dir: the pruned tokenizer.
        held_out: the texts.
        change: what is tried.
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

    plain = bits("judging the plain cut")
    repaired: Mapping[str, float] = plain
    parameters = dict(model.named_parameters())
    for share in change.shares:
        with torch.no_grad():
            for name in change.names:
                parameters[name].copy_(change.tensor(name, share))
        repaired = bits("judging the repair")
        if all(repaired[name] <= plain[name] for name in plain):
            return Verdict(share, plain, repaired)
    return Verdict(0.0, plain, repaired)
