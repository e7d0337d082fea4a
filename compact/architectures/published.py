"""The built-in table of published models, with sizes from their configurations and their published parameter counts.

The table is `published_models.csv`, with one row per model. Settings that all models of a family share (biases, norms
of q and k, the pattern of windows) are in the family table.
"""

from __future__ import annotations

import csv
import difflib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from compact.architectures.table import FAMILIES

_TABLE = Path(__file__).with_name("published_models.csv")


@dataclass(frozen=True)
class PublishedModel:
    """One row of the table.

    Attributes:
        name: the name that a user types.
        family: the family's display name.
        architecture: `architectures[0]` in the language model's config.json.
        hub_id: Hub id of the model.
        hidden_size, intermediate_size, layers, heads, kv_heads, head_dim, vocab_size: sizes from config.json.
        merges: number of merges of its tokenizer in a GGUF; 0 for a SentencePiece-style tokenizer.
        tied: whether the LM head is the embedding.
        sliding_window: positions that a sliding-window layer attends to, or None without such layers.
        context_length: positions, as stated on the model card.
        published: number of parameters in the safetensors files on the Hub.
        outside: those of them that are not part of the language model, such as a vision tower and projector, or a
            second copy of a tied head.
        source: the source of `published`.
    """

    name: str
    family: str
    architecture: str
    hub_id: str
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    merges: int
    tied: bool
    sliding_window: int | None
    context_length: int
    published: int
    outside: int
    source: str

    def config(self) -> dict[str, Any]:
        """Return a new dictionary with the keys of config.json that determine shapes, key-value cache and types."""
        family = next(family for family in FAMILIES if family.architecture == self.architecture)
        config: dict[str, Any] = {
            "architectures": [self.architecture],
            "model_type": family.model_type,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": self.context_length,
        }
        return config if self.sliding_window is None else {**config, "sliding_window": self.sliding_window}


@cache
def published_models() -> tuple[PublishedModel, ...]:
    """Return all rows in the order of the table: by family, smallest model first."""
    with _TABLE.open(encoding="utf-8", newline="") as file:
        return tuple(_row(row) for row in csv.DictReader(file))


def _row(row: dict[str, str]) -> PublishedModel:
    texts = ("name", "family", "architecture", "hub_id", "source")
    values: dict[str, Any] = {
        key: value if key in texts else int(value or 0) for key, value in row.items() if key != "tied"
    }
    values["sliding_window"] = values["sliding_window"] or None
    return PublishedModel(tied=row["tied"] == "yes", **values)


def published_model(name: str) -> PublishedModel | None:
    """Return the row with this name (case-insensitive), or None."""
    return next((model for model in published_models() if model.name == name.lower()), None)


def close_names(name: str) -> list[str]:
    """Return up to three names of the table that the user may have meant."""
    return difflib.get_close_matches(name.lower(), [model.name for model in published_models()], n=3)
