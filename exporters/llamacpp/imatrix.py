"""Importance matrices: the mean square of each input of each weight matrix. The quantizer uses it to weight errors.

llama.cpp's `llama-imatrix` produces the same data (tools/imatrix/imatrix.cpp): for each matrix, the squares of its
inputs summed over tokens, and the number of tokens. `imatrix_torch.collect` measures it with Transformers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from compact.base.errors import DamagedFileError
from exporters.llamacpp.quant_rules import ModelShape


@dataclass(frozen=True)
class Imatrix:
    """An importance matrix.

    Attributes:
        means: GGUF tensor name -> mean of the squared inputs, float32 [n_in], or [n_experts * n_in] for experts.
        counts: GGUF tensor name -> number of averaged tokens, int64 [1], or [n_experts] for experts.
        tokens: number of calibration tokens.
        chunk_size: tokens per chunk if all sequences have one length, otherwise 0.
        source_id: sha256 id of the data that was measured; may be empty for a matrix read from a file.
        datasets: names of the calibration data.
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
        """sha256 over names, counts and values, sorted by name."""
        digest = hashlib.sha256()
        for name in sorted(self.means):
            digest.update(name.encode() + b"\0")
            digest.update(np.ascontiguousarray(self.counts[name], dtype="<i8").tobytes())
            digest.update(np.ascontiguousarray(self.means[name], dtype="<f4").tobytes())
        return digest.hexdigest()

    def fitting(self, model: ModelShape) -> dict[str, NDArray[np.float32]]:
        """Return the entries for the matrices of `model`, by name.

        Raises:
            DamagedFileError: an entry does not have the row length of its matrix, or a value is not finite.
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
                    f"importance matrix: {name} has {values.size} values, but the model has {expected} inputs there",
                    "it was made for another model; measure it again",
                )
            if not np.isfinite(values).all():
                raise DamagedFileError(
                    f"importance matrix: {name} has a value that is not finite", "measure the importance matrix again"
                )
            found[name] = np.ascontiguousarray(values, dtype=np.float32)
        return found

    def pruned(self, kept_channels: Sequence[Sequence[int]]) -> Imatrix:
        """Return the matrix of a pruned model: the entries of `ffn_down` keep only the kept channels.

        All other inputs have the sizes of the unpruned model. Their values are approximate, because the pruned model's
        activations differ slightly.

        Args:
            kept_channels: kept FFN channels of each layer, as in a plan.
        """
        means = dict(self.means)
        for layer, channels in enumerate(kept_channels):
            name = f"blk.{layer}.ffn_down.weight"
            if name in means:
                means[name] = means[name][np.asarray(channels, dtype=np.int64)]
        return replace(self, means=means)
