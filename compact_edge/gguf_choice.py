"""Which GGUF types a target's model takes: what the user named, else the profile's that fit the model's rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compact_edge.side import row_lengths
from exporters.artifact import fitting_quant
from exporters.quant_types import check_rows, ggml_type, quant_named

if TYPE_CHECKING:
    from targets.profile import Profile


def chosen_types(
    profile: Profile, config: Mapping[str, Any], quant: str | None, embedding_quant: str | None = None
) -> tuple[str, str | None]:
    """The type of the file, and that of the token embedding (None: llama.cpp's choice).

    Raises:
        UsageError: an unknown type. BudgetError: rows that the type cannot hold.
    """
    lengths = row_lengths(config)
    if quant is not None:
        check_rows(quant, lengths)
        return quant_named(quant).name, embedding_quant
    name = fitting_quant(profile.quantization, profile.quantization_block32, lengths)
    fits = int(config["hidden_size"]) % ggml_type(profile.embedding_quant).block == 0
    if embedding_quant is None and quant_named(name).writer == "llama" and fits:
        return name, profile.embedding_quant
    return name, embedding_quant
