"""`--fit`: predicts the size of artifacts before pruning, and checks it after the export."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from compact.errors import GateError
from compact_edge.formats import Format, SizeRequest

if TYPE_CHECKING:
    from compact.cache import Cache
    from compact.prune import PruneOptions
    from compact.search import SizeOf
    from compact.source import ModelSource


def largest_of(
    forms: Sequence[Format], source: ModelSource, pruning: PruneOptions, name: str, description: str, cache: Cache
) -> SizeOf:
    """Return a function that gives the bytes of a build's largest artifact at given sizes.

    Args:
        forms: the formats of the build.
        source: the unpruned model.
        pruning: options for ranking the tokens.
        name: name of the pruned model, for the files' metadata.
        description: longest possible description in the metadata.
        cache: cache for the token counts of the ranking.

    Raises:
        UsageError: the size of a format cannot be predicted.
    """
    from compact.ranking import rank_vocabulary

    request = SizeRequest(source, rank_vocabulary(source, pruning, cache), name, description)
    models = [form.sizes(request) for form in forms]
    return lambda sizes: max(model.file_bytes(sizes) for model in models)


def checkpoint_sizes(source: ModelSource, pruning: PruneOptions, quant: str, cache: Cache) -> SizeOf:
    """Return a function that gives the bytes of a pruned checkpoint's GGUF at given sizes.

    It is the larger of the sizes with and without an importance matrix, which can affect the types of tensors.
    """
    from compact.ranking import rank_vocabulary
    from exporters.gguf import GgufMetadata
    from exporters.gguf_size import gguf_sizes

    ranking = rank_vocabulary(source, pruning, cache)
    models = [
        gguf_sizes(
            source,
            ranking.always,
            ranking.order,
            quant,
            has_imatrix=has_imatrix,
            metadata=GgufMetadata(name=f"{source.name}-compact", base_model=source.hub_id),
        )
        for has_imatrix in (False, True)
    ]
    return lambda sizes: max(model.file_bytes(sizes) for model in models)


def check_fit(fit_bytes: int | None, size_bytes: int) -> None:
    """Raise GateError if an artifact is larger than requested."""
    if fit_bytes is not None and size_bytes > fit_bytes:
        raise GateError(
            f"--fit {fit_bytes / 1e6:.2f} MB: the artifact is larger, {size_bytes / 1e6:.2f} MB",
            "give a slightly smaller size",
        )
