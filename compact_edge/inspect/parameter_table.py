"""The built-in table of published models with counted parameters, for `inspect --list`, `--all` and the docs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compact.architectures.published import PublishedModel, published_models
from compact.pruning.budget import Parts
from compact.sources.config_source import config_of_row
from compact_edge.inspect.inspection import Inspected, of_config, shares
from compact_edge.terminal.console import format_table

HEADER = ("model", "parameters", "vocabulary", "attention", "FFN", "norms")


@dataclass(frozen=True)
class Counted:
    """A model of the table with its parameters by part."""

    model: PublishedModel
    parts: Parts

    @property
    def shares(self) -> dict[str, float]:
        """Share of each part, 0 to 1."""
        return shares(self.parts)

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values for `--json`."""
        return {
            "model": self.model.name,
            "family": self.model.family,
            "hub_id": self.model.hub_id,
            "parameters": self.parts.as_dict(),
            "vocabulary": self.parts.vocabulary_parts,
            "shares": {name: round(share, 6) for name, share in self.shares.items()},
        }

    def cells(self) -> tuple[str, ...]:
        """Return the cells of a table row."""
        wanted = ("vocabulary", "attention", "ffn", "norms")
        return (self.model.name, f"{self.parts.total:,}", *(percent(self.shares[name]) for name in wanted))


def percent(share: float) -> str:
    """Format a share as a percentage. Very small shares get more digits."""
    return f"{share:.1%}" if share >= 0.001 else f"{share:.3%}"


def inspected_table() -> list[Inspected]:
    """Inspect every model of the table."""
    return [of_config(config_of_row(model)) for model in published_models()]


def counted_models() -> tuple[Counted, ...]:
    """Count the parameters of every model of the table."""
    pairs = zip(published_models(), inspected_table(), strict=True)
    return tuple(Counted(model, inspected.parts) for model, inspected in pairs)


def overview(counted: Sequence[Counted]) -> str:
    """Return a table of parameters and shares, one model per line."""
    return format_table(tuple(name.upper() for name in HEADER), [model.cells() for model in counted])


def listing() -> str:
    """Return the rows of the built-in table, one model per line."""
    header = (
        "NAME",
        "HUB",
        "HIDDEN",
        "FFN",
        "LAYERS",
        "HEADS",
        "KV",
        "HEAD DIM",
        "VOCAB",
        "TIED",
        "CONTEXT",
        "PARAMETERS",
    )
    rows = [
        (
            model.name,
            model.hub_id,
            str(model.hidden_size),
            str(model.intermediate_size),
            str(model.layers),
            str(model.heads),
            str(model.kv_heads),
            str(model.head_dim),
            str(model.vocab_size),
            "yes" if model.tied else "no",
            str(model.context_length),
            f"{model.published - model.outside:,}",
        )
        for model in published_models()
    ]
    return format_table(header, rows)
