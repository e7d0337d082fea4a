"""The GGUF types that a search compares, with their errors: llama.cpp's mixes, and mixes made for the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from compact.base.cache import Cache
from compact.base.progress import Progress
from compact.sources.model_source import ModelSource
from exporters.format_values import Choices, Recipe, Request
from exporters.gguf.artifact import Export, importance_of
from exporters.gguf.estimate import estimated_sizes
from exporters.gguf.flags import MIX
from exporters.gguf.recipes import aligned_sizes, unpruned_types
from exporters.llamacpp.imatrix import Imatrix
from exporters.llamacpp.imatrix_files import write_imatrix
from exporters.llamacpp.quant_rules import quantizable
from exporters.llamacpp.quant_types import GGML_TYPES
from exporters.llamacpp.type_errors import TypeErrors, is_head, measure_type_errors

# Bits per weight of the body in the mixes that are tried.
_BITS = (3.5, 4.0, 4.75, 5.25, 5.75, 6.5, 7.5)
# Types of the embedding (and of a tied head) in these mixes.
_EMBEDDINGS = ("Q8_0", "IQ4_NL")
# Types that a mix may give to a matrix of the body. The others have more bits and larger errors than one of these, or
# kernels that are slow on a CPU.
_BODY = ("Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "IQ4_NL", "IQ4_XS", "Q3_K", "IQ3_S", "IQ3_XXS")


def matrix_of(request: Request, cache: Cache, progress: Progress) -> Imatrix | None:
    """Return the importance matrix of the unpruned model on the calibration text.

    A build measures the same matrix for its baseline.
    """
    calibration = request.calibration
    export = Export(
        checkpoint=request.source.directory,
        checkpoint_id=request.source.id,
        quant="IQ4_NL",
        name=request.name,
        texts=calibration.texts if request.measures else (),
        texts_id=calibration.id,
    )
    return importance_of(export, cache, progress)


def write_trial_matrix(
    path: Path, kept_channels: Sequence[Sequence[int]], request: Request, cache: Cache, progress: Progress
) -> Path | None:
    """Write an approximate importance matrix of a pruned model, and return the path.

    Returns None if there is no text to measure one.

    Args:
        path: file to write.
        kept_channels: kept FFN channels of each layer.
        request: the unpruned model and its calibration.
        cache, progress: for the matrix of the unpruned model.
    """
    matrix = matrix_of(request, cache, progress)
    if matrix is None:
        return None
    write_imatrix(matrix.pruned(kept_channels), path)
    return path


def with_errors(
    recipes: Sequence[Recipe], request: Request, choices: Choices, cache: Cache, progress: Progress
) -> list[Recipe]:
    """Return the recipes, and mixes made for the model, with the mean relative errors on the unpruned model.

    Args:
        recipes: llama.cpp's mixes.
        request: the unpruned model and its calibration.
        choices: the user's choices. With a type of the embedding, no mixes are made.
        cache, progress: for the importance matrix and the errors.

    Raises:
        CompactEdgeError: an error of measuring the matrix or the errors.
    """
    source = request.source
    errors = measure_type_errors(source, matrix_of(request, cache, progress), cache, progress)
    if choices.get("embedding_quant") is None:
        recipes = [*recipes, *_mixes(source, errors)]
    found = []
    for recipe in recipes:
        embedding, mix = recipe.choices.get("embedding_quant"), recipe.choices.get(MIX)
        body, head = errors.of(unpruned_types(source.config, recipe.quant, embedding, mix))
        found.append(replace(recipe, body_error=body, head_error=head))
    return found


def _mixes(source: ModelSource, errors: TypeErrors) -> Iterator[Recipe]:
    """Yield recipes whose body has about the wanted bits per weight and the smallest mean error.

    Every matrix counts the same, whatever its size: small matrices get more bits. For a price per bit, each matrix
    takes the type with the smallest sum of error and price. The price is searched for the wanted bits.
    """
    model = estimated_sizes(source.config, source.family, "Q8_0")
    tensors = [t.tensor for t in model.file_tensors(aligned_sizes(source.config)) if quantizable(t.tensor)]
    heads = [t.name for t in tensors if is_head(t.name)]
    counts = {t.name: t.count for t in tensors if t.name not in heads and t.name in errors.errors}
    others = {t.name: "Q8_0" for t in tensors if t.name not in heads and t.name not in errors.errors}
    seen: set[tuple[tuple[str, str], ...]] = set()
    for bits in _BITS:
        body = cheapest(counts, errors, bits)
        if tuple(sorted(body.items())) in seen:
            continue
        seen.add(tuple(sorted(body.items())))
        for embedding in _EMBEDDINGS:
            if any(errors.errors.get(name) and embedding not in errors.errors[name] for name in heads):
                continue
            mix = {**others, **body, **dict.fromkeys(heads, embedding)}
            # The name of the file is the type of most weights.
            weights: dict[str, int] = {}
            for name, kind in body.items():
                weights[kind] = weights.get(kind, 0) + counts[name]
            most = max(weights, key=lambda kind: weights[kind])
            yield Recipe(_FILE_TYPES.get(most, most), {MIX: mix}, f"mix {bits:g}, embedding {embedding}")


# Tensor types that are not the name of a file type.
_FILE_TYPES = {"Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "Q3_K": "Q3_K_M"}


def cheapest(counts: Mapping[str, int], errors: TypeErrors, bits: float) -> dict[str, str]:
    """Return the types with the smallest sum of errors at no more than `bits` per weight on average.

    Args:
        counts: tensor name -> number of weights.
        errors: relative errors.
        bits: average bits per weight. If even the smallest types have more, they are returned.
    """
    total = sum(counts.values())
    low, high = 0.0, 1e3  # price of a bit per weight of the whole body
    best = _at_price(counts, errors, high, total)
    for _ in range(60):
        price = (low + high) / 2
        types = _at_price(counts, errors, price, total)
        if sum(GGML_TYPES[types[name]].bits * count for name, count in counts.items()) / total > bits:
            low = price
        else:
            high, best = price, types
    return best


def _at_price(counts: Mapping[str, int], errors: TypeErrors, price: float, total: int) -> dict[str, str]:
    found = {}
    for name, count in counts.items():
        offered: Sequence[str] = [kind for kind in _BODY if kind in errors.errors[name]]
        # The errors are averaged over the matrices, and the bits over the weights.
        found[name] = min(
            offered,
            key=lambda kind, name=name, count=count: (  # type: ignore[misc]
                errors.at(name, kind) / len(counts) + price * GGML_TYPES[kind].bits * count / total
            ),
        )
    return found
