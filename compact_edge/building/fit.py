"""`--fit`: predicts the size of artifacts before pruning, and checks it after the export."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from compact.base.errors import GateError
from exporters.base import Format
from exporters.format_values import SizeRequest

if TYPE_CHECKING:
    from compact.pruning.ranking import Ranking
    from compact.search.find import SizeOf
    from compact.sources.model_source import ModelSource


def largest_of(formats: Sequence[Format], source: ModelSource, ranking: Ranking, name: str, description: str) -> SizeOf:
    """Return a function that gives the bytes of a build's largest artifact at given sizes.

    Args:
        formats: those of the build.
        source: the unpruned model.
        ranking: ranking of its vocabulary.
        name: name of the pruned model, for the files' metadata.
        description: longest possible description in the metadata.

    Raises:
        UsageError: the size of a format cannot be predicted.
    """
    request = SizeRequest(source, ranking, name, description)
    models = [each.sizes(request) for each in formats]
    return lambda sizes: max(model.file_bytes(sizes) for model in models)


def checkpoint_sizes(source: ModelSource, ranking: Ranking, quant: str) -> SizeOf:
    """Return a function that gives the bytes of a pruned checkpoint's GGUF at given sizes.

    It is the larger of the sizes with and without an importance matrix, which can affect the types of tensors.
    """
    from exporters.gguf.size import gguf_sizes
    from exporters.gguf_writer.metadata import GgufMetadata

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
