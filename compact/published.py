"""The built-in table of published models: sizes from their configurations, and the parameter counts they publish.

The table is `published_models.csv`, one row a model. What a family's rows have in common (biases, norms of q and k, the
pattern of windows) is in the family table. Columns: `published` is the count of the Hub's safetensors files, `outside`
what of it is no part of the language model (a vision tower and projector, or a second copy of a tied head), and
`context_length` what the model card states.
"""

from __future__ import annotations

import csv
import difflib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from compact.families import FAMILIES

_TABLE = Path(__file__).with_name("published_models.csv")


@dataclass(frozen=True)
class PublishedModel:
    """One row.

    Attributes:
        name: what a user types.
        family: the family's name, as people say it.
        architecture: `architectures[0]` of the language model's config.json.
        hub_id: where it is published.
        merges: those that a GGUF's tokenizer holds; 0 for a SentencePiece-style one.
        tied: the LM head is the embedding.
        sliding_window: positions that a sliding-window layer attends to, None where there are no such layers.
        context_length: positions, as the model card states.
        published: parameters of the published safetensors files.
        outside: parameters of those files that are not the language model's.
        source: where `published` is from.
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
        """What of config.json decides shapes, key-value cache and types; a new dictionary each time."""
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
    """Every row, in the order of the table: by family, the smallest model first."""
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
    """The row of that name, in any case; None where there is none."""
    return next((model for model in published_models() if model.name == name.lower()), None)


def close_names(name: str) -> list[str]:
    """Names of the table that were probably meant."""
    return difflib.get_close_matches(name.lower(), [model.name for model in published_models()], n=3)
