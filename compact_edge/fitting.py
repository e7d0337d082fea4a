"""`compact-edge inspect --target`: which models fit a device, and the smallest cut that makes the others fit.

Nothing is built or run. Files are sized by `exporters.gguf_size`, memory by `exporters.memory_estimate`; where there is
no tokenizer to read, its bytes are an estimate (`exporters.gguf_estimate`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compact.budget import Sizes, removable_parameters, removed_parameters
from compact.errors import BudgetError, UsageError
from compact.sizes import RATIO_GRID
from compact.source import ModelSource
from compact_edge.console import format_table
from compact_edge.inspection import Inspected, Request
from exporters.format_gguf import GgufFormat
from exporters.gguf_choice import chosen_types
from exporters.gguf_estimate import estimated_sizes
from exporters.gguf_size import GgufSizes, gguf_sizes
from exporters.memory_estimate import MemoryEstimate, estimate_memory
from exporters.quant_types import grid, quant_named

if TYPE_CHECKING:
    from targets.profile import Profile

# Ratios are tried in hundredths.
_STEPS = 100
# The largest ratio whose quality docs/quality.md shows.
MEASURED_RATIO = 0.35
_MIB = 1024 * 1024


@dataclass(frozen=True)
class Place:
    """A model at one size on the device.

    Attributes:
        sizes: vocabulary and FFN.
        ratio: share of the parameters that is gone.
        file_bytes: of the GGUF.
        memory: resident while it runs.
    """

    sizes: Sizes
    ratio: float
    file_bytes: int
    memory: MemoryEstimate

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "vocab_size": self.sizes.vocab_size,
            "intermediate_size": self.sizes.intermediate_size,
            "ratio": round(self.ratio, 6),
            "file_bytes": self.file_bytes,
            "memory": self.memory.as_dict(),
        }


@dataclass(frozen=True)
class Fit:
    """What a target says of one model.

    Attributes:
        model: name.
        parameters: of the unpruned model.
        quant, embedding_quant: types.
        context: positions of the key-value cache: the target's, or the model's where it has fewer.
        whole: the unpruned model.
        fits: whether it keeps the budgets of memory and storage.
        cut: the smallest cut that keeps them; None where none is needed, or none is enough.
        wanted: the ratio of `cut` as a user would ask for it.
        exact_tokenizer: the tokenizer's bytes are counted, not estimated.
    """

    model: str
    parameters: int
    quant: str
    embedding_quant: str | None
    context: int
    whole: Place
    fits: bool
    cut: Place | None
    wanted: float | None
    exact_tokenizer: bool

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "model": self.model,
            "parameters": self.parameters,
            "quant": self.quant,
            "embedding_quant": self.embedding_quant,
            "context": self.context,
            "tokenizer_bytes": "counted" if self.exact_tokenizer else "estimated",
            "unpruned": self.whole.as_dict(),
            "fits": self.fits,
            "smallest_ratio": self.wanted,
            "pruned": None if self.cut is None else self.cut.as_dict(),
        }


def check_target(profile: Profile, quant: str | None) -> None:
    """What can be refused before a model is opened. Raises UsageError."""
    if profile.runtime != GgufFormat.runtime:
        raise UsageError(
            f"--target {profile.name}: its runtime is {profile.runtime}, and memory is estimated for GGUF targets only",
            "name a target whose runtime is llama.cpp: compact-edge targets",
        )
    if quant is not None:
        quant_named(quant)


def fit_model(model: Inspected, profile: Profile, quant: str | None, context: int | None) -> Fit:
    """Size one model for a target.

    Args:
        model: a checkpoint, or a configuration.
        profile: the target; its runtime is llama.cpp.
        quant: a type instead of the profile's.
        context: positions instead of the profile's.

    Raises:
        CompactEdgeError: what a GGUF of this model cannot hold.
    """
    name, embedding = chosen_types(profile, model.config, quant)
    files = _sizes_of(model, name, embedding)
    limit = int(model.config.get("max_position_embeddings") or 0)
    positions = context or profile.context_length.value
    positions = min(positions, limit) if limit else positions

    def place(sizes: Sizes) -> Place:
        memory = estimate_memory(
            files,
            model.config,
            model.family,
            sizes,
            context=positions,
            isa=None if profile.isa is None else profile.isa.features,
            merges=model.merges,
        )
        gone = removed_parameters(sizes, model.parts, model.sizes) / model.parts.total
        return Place(sizes, gone, files.file_bytes(sizes), memory)

    def fitting(hundredths: int) -> Place | None:
        try:
            found = place(model.sizes_asked(Request(ratio=hundredths / _STEPS), grid(name)))
        except BudgetError:  # beyond what vocabulary and FFN can give
            return None
        return found if _keeps(found, profile) else None

    whole = place(model.sizes)
    fits = _keeps(whole, profile)
    wanted, cut = (None if fits else _smallest(model, grid(name), fitting)) or (None, None)
    return Fit(
        model.source.name,
        model.parts.total,
        name,
        embedding,
        positions,
        whole,
        fits,
        cut,
        wanted,
        isinstance(model.source, ModelSource),
    )


def _sizes_of(model: Inspected, quant: str, embedding: str | None) -> GgufSizes:
    source, ranking = model.source, model.ranking
    if not isinstance(source, ModelSource) or ranking is None:
        return estimated_sizes(model.config, model.family, quant, embedding_quant=embedding, merges=model.merges)
    from exporters.gguf_metadata import GgufMetadata

    return gguf_sizes(
        source,
        ranking.always,
        ranking.order,
        quant,
        embedding_quant=embedding,
        has_imatrix=quant_named(quant).uses_imatrix,
        metadata=GgufMetadata(name=source.name, base_model=source.hub_id),
    )


def _keeps(place: Place, profile: Profile) -> bool:
    memory, storage = profile.memory_budget_bytes, profile.storage_budget_bytes
    return (memory is None or place.memory.total <= memory) and (storage is None or place.file_bytes <= storage)


def _smallest(model: Inspected, block: int, fitting: Callable[[int], Place | None]) -> tuple[float, Place] | None:
    """The smallest ratio that fits, to the hundredth, and the model then; None where the largest does not fit."""
    most = sum(removable_parameters(model.parts, model.limits(max(block, RATIO_GRID))))
    low, high = 0, int(_STEPS * most / model.parts.total)
    if high < 1 or (cut := fitting(high)) is None:
        return None
    # What is smaller in both sizes is smaller in file and memory, so that half of what is left can go each time.
    while high - low > 1:
        middle = (low + high) // 2
        if (smaller := fitting(middle)) is None:
            low = middle
        else:
            high, cut = middle, smaller
    return high / _STEPS, cut


def report(fits: Sequence[Fit], profile: Profile, context: int | None) -> str:
    """The table for people; `context` is what the user asked for instead of the profile's."""
    header = (
        "MODEL",
        "TYPE",
        "FILE",
        "KV CACHE",
        "COMPUTE",
        "MEMORY",
        "FITS",
        "RATIO",
        "VOCAB",
        "FFN",
        "FILE",
        "MEMORY",
    )
    positions = context or profile.context_length.value
    lines = [
        f"{profile.name}: context {positions:,} tokens, {_budget('memory', profile.memory_budget_bytes)}, "
        f"{_budget('storage', profile.storage_budget_bytes)}",
        format_table(header, [_row(fit, profile) for fit in fits]),
        "MEMORY is what llama-server has resident on the CPU: the file's pages, matrices repacked for the CPU, KV "
        "cache, compute buffers, tokenizer, program. RATIO and what follows: the smallest cut that fits.",
    ]
    fewer = [f"{fit.model} ({fit.context:,})" for fit in fits if fit.context < positions]
    if fewer:
        lines.append(f"models with fewer positions: {', '.join(fewer)}")
    if not all(fit.exact_tokenizer for fit in fits):
        lines.append("without their tokenizers, the bytes of these and the smallest vocabularies are estimates")
    if any(fit.wanted is not None and fit.wanted > MEASURED_RATIO for fit in fits):
        lines.append(f"* quality was measured up to a ratio of {MEASURED_RATIO:g} only: docs/quality.md")
    return "\n".join(lines)


def _row(fit: Fit, profile: Profile) -> tuple[str, ...]:
    whole, cut = fit.whole, fit.cut
    bounded = profile.memory_budget_bytes is not None or profile.storage_budget_bytes is not None
    sizes = (whole.file_bytes, whole.memory.kv_cache, whole.memory.compute, whole.memory.total)
    start = (fit.model, fit.quant, *(_megabytes(size) for size in sizes))
    if fit.fits or not bounded:
        return (*start, "yes" if bounded else "-", "", "", "", "", "")
    if cut is None or fit.wanted is None:
        return (*start, "no", "none", "", "", "", "")
    return (
        *start,
        "no",
        f"{fit.wanted:.2f}{'*' if fit.wanted > MEASURED_RATIO else ''}",
        f"{cut.sizes.vocab_size:,}",
        f"{cut.sizes.intermediate_size:,}",
        _megabytes(cut.file_bytes),
        _megabytes(cut.memory.total),
    )


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.0f} MB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.1f} MB"


def _budget(name: str, n_bytes: int | None) -> str:
    return f"no {name} budget" if n_bytes is None else f"{name} at most {n_bytes // _MIB:,} MiB ({_megabytes(n_bytes)})"
