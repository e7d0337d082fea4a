"""Importance matrices: the mean square of every input of every weight matrix, which the quantizer weighs errors by.

The same thing as llama.cpp's `llama-imatrix` makes (tools/imatrix/imatrix.cpp): for each matrix the squares of its
inputs, summed over tokens, and the number of tokens. `collect` measures it with Transformers on the checkpoint itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from compact.errors import DamagedFileError
from exporters.quant_rules import ModelShape


@dataclass(frozen=True)
class Imatrix:
    """An importance matrix.

    Attributes:
        means: GGUF tensor name -> float32 [n_in], mean of the squared inputs. For stacked experts [n_experts * n_in].
        counts: GGUF tensor name -> int64 [1] (or [n_experts]), tokens that were averaged.
        tokens: tokens of the calibration.
        chunk_size: tokens of a chunk, where sequences had one length; else 0.
        source_id: sha256 of what it was measured on, empty for a file read.
    """

    means: Mapping[str, NDArray[np.float32]]
    counts: Mapping[str, NDArray[np.int64]]
    tokens: int
    chunk_size: int = 0
    source_id: str = ""
    datasets: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "means", MappingProxyType(dict(self.means)))
        object.__setattr__(self, "counts", MappingProxyType(dict(self.counts)))

    @property
    def id(self) -> str:
        """sha256 over names, counts and values, in the order of the names."""
        digest = hashlib.sha256()
        for name in sorted(self.means):
            digest.update(name.encode() + b"\0")
            digest.update(np.ascontiguousarray(self.counts[name], dtype="<i8").tobytes())
            digest.update(np.ascontiguousarray(self.means[name], dtype="<f4").tobytes())
        return digest.hexdigest()

    def fitting(self, model: ModelShape) -> dict[str, NDArray[np.float32]]:
        """Entries for the matrices that `model` has, by name.

        Raises:
            DamagedFileError: an entry has another length than the rows of its matrix: it is of another model.
        """
        shapes = {tensor.name: tensor.shape for tensor in model.tensors}
        found: dict[str, NDArray[np.float32]] = {}
        for name, values in self.means.items():
            shape = shapes.get(name)
            if shape is None:
                continue
            expected = shape[0] * (shape[2] if len(shape) > 2 else 1)
            if values.size != expected:
                raise DamagedFileError(
                    f"importance matrix has {values.size} values for {name}, the model has {expected} inputs there",
                    "it was made for another model; measure it anew",
                )
            if not np.isfinite(values).all():
                raise DamagedFileError(f"importance matrix has a value that is not finite for {name}")
            found[name] = np.ascontiguousarray(values, dtype=np.float32)
        return found
