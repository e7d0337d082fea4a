"""`--fit`: artifacts of a size that is asked for, predicted before anything is pruned and checked when it is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from compact.errors import GateError
from exporters.base import Format
from exporters.format_values import SizeRequest

if TYPE_CHECKING:
    from compact.ranking import Ranking
    from compact.search import SizeOf
    from compact.source import ModelSource


def largest_of(formats: Sequence[Format], source: ModelSource, ranking: Ranking, name: str, description: str) -> SizeOf:
    """Bytes of the largest of a build's artifacts at given sizes. Raises UsageError for a format that cannot say.

    Args:
        formats: those of the build.
        source: the unpruned model.
        ranking: of its vocabulary.
        name: name of the pruned model, for the files' metadata.
        description: the longest line that the metadata may hold.
    """
    request = SizeRequest(source, ranking, name, description)
    models = [each.sizes(request) for each in formats]
    return lambda sizes: max(model.file_bytes(sizes) for model in models)


def checkpoint_sizes(source: ModelSource, ranking: Ranking, quant: str) -> SizeOf:
    """Bytes of the GGUF that a pruned checkpoint can be exported to, with and without an importance matrix.

    Where the two differ in a tensor's type, the larger counts.
    """
    from exporters.gguf_metadata import GgufMetadata
    from exporters.gguf_size import gguf_sizes

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
    """Raises GateError where an artifact is larger than was asked for."""
    if fit_bytes is not None and size_bytes > fit_bytes:
        raise GateError(
            f"--fit {fit_bytes / 1e6:.2f} MB: the artifact came out at {size_bytes / 1e6:.2f} MB",
            "ask for a little less",
        )
