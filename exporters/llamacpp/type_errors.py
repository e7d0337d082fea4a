"""Estimate the error of every GGML type for every matrix of a model, without quantising the model.

Some rows of each matrix are quantised by ggml and read back. The error is relative: the squares of the differences,
weighted by the importance matrix, divided by the weighted squares of the values. The mean of the matrices' errors
predicts the loss of a type well (docs/front.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compact.base.cache import Cache
from compact.base.errors import DamagedFileError
from compact.base.files import read_json_object, sha256_json, write_json
from compact.base.progress import SILENT, Progress
from compact.checkpoints.shards import open_tensors
from compact.sources.model_source import ModelSource
from exporters.llamacpp.imatrix import Imatrix
from exporters.llamacpp.quant_rules import Choice, category
from exporters.llamacpp.quant_types import GGML_TYPES, REQUIRES_IMATRIX
from exporters.native.child import NativeChild

# Rows of a matrix that are quantised. The embedding has many kinds of rows, so it gets more.
_ROWS, _EMBEDDING_ROWS = 64, 512
TYPES = (
    *("Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS"),
    *("Q3_K", "IQ3_S", "IQ3_XXS", "Q2_K", "IQ2_S", "IQ2_XS"),
)
# Increase this when equal inputs give other errors.
_VERSION = 1


@dataclass(frozen=True)
class TypeErrors:
    """The relative errors of one model.

    Attributes:
        errors: GGUF tensor name -> type name -> relative error, 0 to 1. Types whose blocks do not fit are missing.
    """

    errors: Mapping[str, Mapping[str, float]]

    def at(self, name: str, kind: str) -> float:
        """Return the error of a tensor in a type; 0 for a float type."""
        return self.errors.get(name, {}).get(kind, 0.0)

    def of(self, types: Mapping[str, str]) -> tuple[float, float]:
        """Return the mean error of the body's matrices and that of embedding and head, at the types of a file.

        Args:
            types: tensor name -> type name, for all tensors.
        """
        body = [self.at(name, types[name]) for name in self.errors if name in types and not is_head(name)]
        head = [self.at(name, types[name]) for name in self.errors if name in types and is_head(name)]
        return float(np.mean(body)) if body else 0.0, float(np.mean(head)) if head else 0.0


def is_head(name: str) -> bool:
    """Return whether a tensor is an embedding or the output."""
    return category(name) in (Choice.EMBEDDING, Choice.OUTPUT)


def measure_type_errors(
    source: ModelSource, matrix: Imatrix | None, cache: Cache, progress: Progress = SILENT
) -> TypeErrors:
    """Quantise some rows of every matrix of the unpruned model in every type. The cache stores the result.

    Args:
        source: the unpruned checkpoint.
        matrix: its importance matrix, or None.
        cache: stores the errors.
        progress: receives the number of matrices.

    Raises:
        ToolUnavailableError: llama-cpp-python is not installed.
        EngineCrashedError: ggml aborted.
    """
    key = sha256_json(
        {"version": _VERSION, "source": source.id, "imatrix": None if matrix is None else matrix.id, "types": TYPES}
    )

    def make(work: Path) -> None:
        write_json(work / "errors.json", {"errors": _measure(source, matrix, progress)})

    path = cache.get_or_make("type-errors", key, make) / "errors.json"
    errors: Any = read_json_object(path).get("errors")
    if not isinstance(errors, dict):
        raise DamagedFileError(f"{path}: not a list of errors", "delete the cache")
    return TypeErrors(errors)


def _measure(source: ModelSource, matrix: Imatrix | None, progress: Progress) -> dict[str, dict[str, float]]:
    import torch

    generator = np.random.default_rng(0)
    matrices = [name for name, ref in sorted(source.tensors.items()) if len(ref.shape) == 2]
    found: dict[str, dict[str, float]] = {}
    child = NativeChild("exporters.llamacpp.type_errors_child", source.name, "memory may have run out")
    try:
        with (
            open_tensors(source.tensors) as read,
            progress.task("measuring errors of types", len(matrices), "tensors") as task,
        ):
            for hf_name in matrices:
                name = source.family.gguf_name(hf_name)
                n_rows, n_in = source.tensors[hf_name].shape
                wanted = min(n_rows, _EMBEDDING_ROWS if is_head(name) else _ROWS)
                chosen = np.sort(generator.choice(n_rows, wanted, replace=False))
                rows = read(hf_name)[torch.from_numpy(chosen)].float().numpy()  # [rows, n_in]
                weights = None if matrix is None else matrix.means.get(name)
                if weights is not None and (weights.size != n_in or not weights.any()):
                    weights = None
                types = _fitting(n_in, has_matrix=weights is not None)
                answer, _ = child.ask(
                    {"op": "quantising", "types": types}, [rows] if weights is None else [rows, weights]
                )
                found[name] = dict(zip(types, answer["errors"], strict=True))
                task.advance()
    finally:
        child.close()
    return found


def _fitting(n_in: int, *, has_matrix: bool) -> Sequence[str]:
    """Return the types whose blocks fit rows of this length."""
    return [
        name for name in TYPES if n_in % GGML_TYPES[name].block == 0 and (has_matrix or name not in REQUIRES_IMATRIX)
    ]
