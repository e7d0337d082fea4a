"""`compact-edge inspect --target`: which models fit a device, and the smallest cut that makes the others fit.

Nothing is built or run. `exporters.gguf.size` computes file sizes, and `exporters.gguf.memory` estimates memory.
Without a tokenizer, `exporters.gguf.estimate` estimates its bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compact.base.errors import BudgetError, UsageError
from compact.pruning.budget import Sizes, removable_parameters, removed_parameters
from compact.pruning.sizes import RATIO_GRID
from compact.sources.model_source import ModelSource
from compact_edge.inspect.inspection import Inspected, Request
from compact_edge.terminal.console import format_table
from exporters.gguf.estimate import estimated_sizes
from exporters.gguf.format import GgufFormat
from exporters.gguf.memory import MemoryEstimate, estimate_memory
from exporters.gguf.size import GgufSizes, gguf_sizes
from exporters.gguf.type_choice import chosen_types
from exporters.llamacpp.quant_types import grid, quant_named

if TYPE_CHECKING:
    from targets.profile import Profile

# Ratios are multiples of 1/100.
_STEPS = 100
# The largest ratio whose quality docs/quality.md shows.
MEASURED_RATIO = 0.35
_MIB = 1024 * 1024


@dataclass(frozen=True)
class Place:
    """A model at one size on the device.

    Attributes:
        sizes: vocabulary and FFN sizes.
        ratio: share of removed parameters.
        file_bytes: bytes of the GGUF.
        memory: resident memory at run time.
    """

    sizes: Sizes
    ratio: float
    file_bytes: int
    memory: MemoryEstimate

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values for `--json`."""
        return {
            "vocab_size": self.sizes.vocab_size,
            "intermediate_size": self.sizes.intermediate_size,
            "ratio": round(self.ratio, 6),
            "file_bytes": self.file_bytes,
            "memory": self.memory.as_dict(),
        }


@dataclass(frozen=True)
class Fit:
    """Whether one model fits a target.

    Attributes:
        model: name of the model.
        parameters: parameters of the unpruned model.
        quant, embedding_quant: types.
        context: positions of the key-value cache: those of the target, or of the model if it has fewer.
        whole: the unpruned model.
        fits: whether the unpruned model fits the memory and storage budgets.
        cut: the smallest cut that fits; None if none is needed, or none fits.
        wanted: the `--ratio` that gives `cut`.
        exact_tokenizer: whether the tokenizer's bytes are counted, not estimated.
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
        """Return JSON values for `--json`."""
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
    """Raise UsageError for an unsuitable target or type, before any model is opened."""
    if profile.runtime != GgufFormat.runtime:
        raise UsageError(
            f"--target {profile.name}: its runtime is {profile.runtime}, but estimates exist only for llama.cpp",
            "choose a target with the runtime llama.cpp; compact-edge targets lists them",
        )
    if quant is not None:
        quant_named(quant)


def fit_model(model: Inspected, profile: Profile, quant: str | None, context: int | None) -> Fit:
    """Size one model for a target.

    Args:
        model: a checkpoint, or a configuration.
        profile: the target. Its runtime is llama.cpp.
        quant: a type that replaces the profile's.
        context: positions that replace the profile's.

    Raises:
        CompactEdgeError: the model cannot be exported to GGUF.
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
        except BudgetError:  # vocabulary and FFN cannot be cut that far
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
    from exporters.gguf_writer.metadata import GgufMetadata

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
    """Return the smallest ratio that fits (in steps of 0.01) and the model at it; None if no ratio fits."""
    most = sum(removable_parameters(model.parts, model.limits(max(block, RATIO_GRID))))
    low, high = 0, int(_STEPS * most / model.parts.total)
    if high < 1 or (cut := fitting(high)) is None:
        return None
    # Bisection: a larger ratio never needs a larger file or more memory.
    while high - low > 1:
        middle = (low + high) // 2
        if (smaller := fitting(middle)) is None:
            low = middle
        else:
            high, cut = middle, smaller
    return high / _STEPS, cut


def report(fits: Sequence[Fit], profile: Profile, context: int | None) -> str:
    """Return the table as text. `context` is the context length that the user gave instead of the profile's."""
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
        "MEMORY: resident memory of llama-server on the CPU: the file's pages, matrices repacked for the CPU, KV "
        "cache, compute buffers, tokenizer, program. RATIO and the columns after it: the smallest cut that fits.",
    ]
    fewer = [f"{fit.model} ({fit.context:,})" for fit in fits if fit.context < positions]
    if fewer:
        lines.append(f"models with a shorter context: {', '.join(fewer)}")
    if not all(fit.exact_tokenizer for fit in fits):
        lines.append("without tokenizers, their sizes and the smallest vocabularies are estimates")
    if any(fit.wanted is not None and fit.wanted > MEASURED_RATIO for fit in fits):
        lines.append(f"* quality was measured only up to a ratio of {MEASURED_RATIO:g}: docs/quality.md")
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
