"""The GGUF types that a search tries for a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compact.architectures.table import family_of
from compact.base.errors import BudgetError
from compact.checkpoints.names import CONFIG
from compact.pruning.budget import Sizes
from compact.sources.model_source import ModelSource
from exporters.format_values import Recipe
from exporters.gguf.estimate import estimated_sizes
from exporters.gguf.type_choice import row_lengths
from exporters.llamacpp.quant_types import check_rows, ggml_type, quant_named

# The float type comes before these. All of them keep at least 2.5 bits per weight: below that, even unpruned small
# models lose too much. If two recipes give every tensor the same type, the search tries only the first one.
_QUANTS = (
    *("Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_0", "IQ4_NL", "IQ4_XS"),
    *("Q3_K_M", "IQ3_M", "IQ3_XXS", "IQ2_M"),
)
# None is llama.cpp's choice. The embedding is a large part of a small model.
_EMBEDDINGS = (None, "IQ4_NL", "Q8_0")
_LARGEST_BLOCK = 256


def recipes_of(source: ModelSource, embedding_quant: str | None = None) -> list[Recipe]:
    """Return `recipes_for` a checkpoint: BF16 as the float type if its largest tensor has it, otherwise F16."""
    largest = max(source.tensors.values(), key=lambda ref: ref.n_elements)
    return recipes_for(source.config, "BF16" if largest.dtype == "BF16" else "F16", embedding_quant)


def recipes_for(config: Mapping[str, Any], float_type: str, embedding_quant: str | None = None) -> list[Recipe]:
    """Return the types to try, in descending order of their bits, without two that give every tensor the same type.

    Args:
        config: config.json of the unpruned model with checked sizes.
        float_type: `F16`, or `BF16` for a checkpoint of that type.
        embedding_quant: the user's type of the token embedding. None tries several.

    Returns:
        Recipes whose `choices` have the key `embedding_quant`. Its value None is llama.cpp's choice of type, whatever
        type a target names. Types that cannot hold the model's rows are left out.

    Raises:
        UsageError: `embedding_quant` is unknown.
    """
    wanted = None if embedding_quant is None else ggml_type(embedding_quant).name
    found: dict[tuple[tuple[str, str], ...], Recipe] = {}
    for quant in (float_type, *_QUANTS):
        for embedding in _embeddings(quant, wanted):
            types = _types(config, quant, embedding)
            if types is not None and types not in found:
                name = quant if embedding is None else f"{quant}, embedding {embedding}"
                found[types] = Recipe(quant, {"embedding_quant": embedding}, name)
    return list(found.values())


def _embeddings(quant: str, wanted: str | None) -> Iterator[str | None]:
    """Yield the embedding types to try with a type. Files of a float type have a single type."""
    if quant_named(quant).is_float:
        if wanted in (None, quant):
            yield None
    elif wanted is not None:
        # Files of a single type are written directly.
        yield None if wanted == quant and quant_named(quant).writer == "direct" else wanted
    else:
        yield from _EMBEDDINGS


def _types(config: Mapping[str, Any], quant: str, embedding: str | None) -> tuple[tuple[str, str], ...] | None:
    """Return the type of every tensor by name, or None if the rows do not fit the types."""
    try:
        check_rows(quant, row_lengths(config))
        return tuple(sorted(unpruned_types(config, quant, embedding).items()))
    except BudgetError:
        return None


def unpruned_types(
    config: Mapping[str, Any], quant: str, embedding: str | None, mix: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the type of every tensor of the unpruned model by name.

    Args:
        config: config.json with checked sizes.
        quant: type of the file.
        embedding: type of the token embedding, or None for llama.cpp's choice.
        mix: tensor name -> type, for a mix of types.

    Raises:
        BudgetError: the rows do not fit the types.
    """
    family = family_of(config, CONFIG)
    model = estimated_sizes(config, family, quant, embedding_quant=embedding, tensor_types=mix)
    return {each.tensor.name: each.type for each in model.file_tensors(aligned_sizes(config))}


def aligned_sizes(config: Mapping[str, Any]) -> Sizes:
    """Return the sizes of the unpruned model, with I' rounded down to a multiple of 256.

    I' of a pruned model is a multiple of the block of its type, and 256 is a multiple of all blocks.
    """
    inner = int(config["intermediate_size"])
    return Sizes(int(config["vocab_size"]), inner // _LARGEST_BLOCK * _LARGEST_BLOCK or inner)
