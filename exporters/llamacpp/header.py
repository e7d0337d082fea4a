"""The head of a GGUF, as the quantizer's rules need it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compact.base.errors import DataError
from compact.checkpoints.gguf_file import read_gguf
from exporters.llamacpp.quant_rules import ModelShape, TensorShape


@dataclass(frozen=True)
class GgufHeader:
    """Metadata and tensor table of a GGUF.

    Attributes:
        metadata: key -> value.
        tensors: tensors in file order; shapes in GGUF order (row length first).
    """

    metadata: Mapping[str, Any]
    tensors: tuple[TensorShape, ...]

    def model_shape(self, where: str) -> ModelShape:
        """Return the input of `predict_types`. Raises DataError if a key is missing. `where` names the file."""
        try:
            arch = str(self.metadata["general.architecture"])
            heads = _first(self.metadata[f"{arch}.attention.head_count"])
            heads_kv = _first(self.metadata.get(f"{arch}.attention.head_count_kv", heads))
            return ModelShape(self.tensors, arch, int(self.metadata[f"{arch}.block_count"]), heads, heads_kv)
        except (KeyError, IndexError) as error:
            raise DataError(f"{where}: the GGUF has no {error}", "use a GGUF of a language model") from error


def read_header(path: Path) -> GgufHeader:
    """Read the head of a GGUF. Raises ModelNotFoundError, DamagedFileError and StorageError."""
    file = read_gguf(path)
    tensors = tuple(
        TensorShape(tensor.name, tuple(reversed(tensor.shape)), tensor.qtype.name) for tensor in file.tensors.values()
    )
    return GgufHeader(file.values, tensors)


def _first(value: Any) -> int:
    """Return a head count, which is one number or an array with one number per layer."""
    return int(value[0] if isinstance(value, list) else value)
