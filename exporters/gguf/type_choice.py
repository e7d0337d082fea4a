"""Chooses the GGUF types for a model: the user's choice, or the types of the target that fit the model's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compact.architectures.table import family_of
from compact.checkpoints.names import CONFIG
from exporters.format_values import Target
from exporters.llamacpp.quant_types import Quant, check_rows, ggml_type, grid, quant_named


def row_lengths(config: Mapping[str, Any]) -> Sequence[int]:
    """Return the row lengths that pruning keeps: hidden size, and the total width of the attention heads."""
    head_dim = family_of(config, CONFIG).head_dim_of(config)
    return int(config["hidden_size"]), int(config["num_attention_heads"]) * head_dim


def chosen_types(
    target: Target, config: Mapping[str, Any], quant: str | None, embedding_quant: str | None = None
) -> tuple[str, str | None]:
    """Return the type of the file and that of the token embedding (None: llama.cpp's choice).

    Raises:
        UsageError: the type is unknown.
        BudgetError: the type cannot hold the model's rows.
    """
    lengths = row_lengths(config)
    if quant is not None:
        check_rows(quant, lengths)
        return quant_named(quant).name, embedding_quant
    name = fitting_quant(target.quantization, target.quantization_block32, lengths)
    fits = int(config["hidden_size"]) % ggml_type(target.embedding_quant).block == 0
    if embedding_quant is None and quant_named(name).writer == "llama" and fits:
        return name, target.embedding_quant
    return name, embedding_quant


def fitting_quant(quant: str, block32: str, config_sizes: Sequence[int]) -> str:
    """Return `quant` if every row length in `config_sizes` is a multiple of its block size, otherwise `block32`."""
    return quant if all(size % grid(quant) == 0 for size in config_sizes) else block32


def writes_directly(quant: Quant, embedding: str | None, tensor_types: Mapping[str, str]) -> bool:
    """Return whether our own writer makes the file: all matrices have one type, F32, F16, BF16 or Q8_0."""
    return quant.writer == "direct" and embedding in (None, quant.name) and not tensor_types
