"""Predicted figures of a GGUF: size of the file, bytes and weights per token, memory of the running model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from compact.architectures.family import Family
from compact.pruning.budget import Sizes
from exporters.format_values import SizeRequest
from exporters.gguf.artifact import metadata_of
from exporters.gguf.memory import estimate_memory, kv_cache_bytes
from exporters.gguf.size import GgufSizes, gguf_sizes
from exporters.gguf.type_choice import writes_directly
from exporters.llamacpp.quant_types import quant_named


@dataclass(frozen=True)
class GgufArtifactSizes:
    """Implements `exporters.format_values.ArtifactSizes` for one model, one type and one device.

    Attributes:
        model: tensors and types.
        config: config.json of the unpruned model.
        family: the row of the family table.
        isa: the CPU's features as in a device profile. None: count every repacking that any CPU does.
        merges: merges of the unpruned tokenizer in the GGUF.
    """

    model: GgufSizes
    config: Mapping[str, Any]
    family: Family
    isa: Collection[str] | None
    merges: int

    def file_bytes(self, sizes: Sizes) -> int:
        """See `GgufSizes.file_bytes`."""
        return self.model.file_bytes(sizes)

    def bytes_per_token(self, sizes: Sizes) -> int:
        """See `GgufSizes.bytes_per_token`."""
        return self.model.bytes_per_token(sizes)

    def weights_per_token(self, sizes: Sizes) -> int:
        """See `GgufSizes.weights_per_token`."""
        return self.model.weights_per_token(sizes)

    def memory_bytes(self, sizes: Sizes, context: int) -> int:
        """See `exporters.gguf.memory.estimate_memory`."""
        return estimate_memory(
            self.model, self.config, self.family, sizes, context=context, isa=self.isa, merges=self.merges
        ).total

    def kv_bytes(self, context: int) -> int:
        """See `exporters.gguf.memory.kv_cache_bytes`."""
        return kv_cache_bytes(self.config, self.family, context)


def artifact_sizes(
    request: SizeRequest,
    quant: str,
    embedding_quant: str | None,
    isa: Collection[str] | None,
    *,
    tensor_types: Mapping[str, str] | None = None,
) -> GgufArtifactSizes:
    """Prepare to predict the figures of a build's artifact.

    Args:
        request: the unpruned model, its ranking, and the names in the file's metadata.
        quant: type of the file.
        embedding_quant: type of the token embedding, or None for llama.cpp's choice.
        isa: the CPU's features as in a device profile, or None if unknown.
        tensor_types: tensor name -> type, for a mix of types.
    """
    source, ranking = request.source, request.ranking
    model = gguf_sizes(
        source,
        ranking.always,
        ranking.order,
        quant,
        embedding_quant=embedding_quant,
        tensor_types=tensor_types,
        # A build always has a matrix: a given file, or one measured on the calibration text.
        has_imatrix=not writes_directly(quant_named(quant), embedding_quant, tensor_types or {}),
        pre=source.pre,
        # The plan does not exist yet. Any sha256 has the length of its id.
        metadata=metadata_of(source, request.name, request.description, source.id),
        heads=request.shared,
    )
    vocabulary = ranking.vocabulary
    merges = 0 if vocabulary.sentencepiece else len(vocabulary.merges)
    return GgufArtifactSizes(model, source.config, source.family, isa, merges)
