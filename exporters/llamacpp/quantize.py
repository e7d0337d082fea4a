"""Quantises a GGUF with llama.cpp's `llama_model_quantize`, in a child process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compact.base.errors import OutputExistsError, UsageError
from compact.base.progress import SILENT, Progress
from exporters.llamacpp.header import read_header
from exporters.llamacpp.imatrix import Imatrix
from exporters.llamacpp.quant_types import ggml_type, needing_imatrix, predict_types, quant_named
from exporters.native.child import NativeChild

_CRASH_HINT = "choose another type, or measure the importance matrix on other text; memory may also have run out"


def quantize_gguf(
    source: Path,
    target: Path,
    quant: str,
    *,
    imatrix: Imatrix | None = None,
    embedding_quant: str | None = None,
    output_quant: str | None = None,
    tensor_types: Mapping[str, str] | None = None,
    n_threads: int = 1,
    progress: Progress = SILENT,
) -> None:
    """Quantise `source` and write the result to `target`.

    Each tensor gets the type that `quant_types.predict_types` returns. If this process ends, or raises an exception
    here (including Ctrl-C), the child ends too. An incomplete `target` is removed.

    Args:
        source: a GGUF with float types.
        target: a path that does not exist. Its directory must exist.
        quant: a name of `quant_types.QUANTS`.
        imatrix: importance matrix. Entries for tensors that are not in the source are ignored.
        embedding_quant: type of token_embd, if different from the mixture's.
        output_quant: type of the output, if different from the mixture's. With tied embeddings, this is token_embd.
        tensor_types: tensor name -> type, for tensors that do not get the mixture's type.
        n_threads: threads for quantising.
        progress: receives one unit per tensor.

    Raises:
        UsageError: the name of a type or a tensor is unknown, or a required importance matrix is missing.
        BudgetError: the rows do not fit `embedding_quant` or `output_quant`, or llama.cpp has no fallback for them.
        OutputExistsError: `target` exists.
        ModelNotFoundError, DamagedFileError, QuantizedCheckpointError: the source is missing or unusable.
        GateError: the quantised values are not finite.
        StorageError: the target cannot be written.
        EngineCrashedError: llama.cpp aborted.
    """
    chosen = quant_named(quant)
    if n_threads < 1:
        raise UsageError(f"n_threads is {n_threads}, but must be at least 1")
    if os.path.lexists(target):
        raise OutputExistsError(f"{target} already exists", "choose another path")
    model = read_header(source).model_shape(str(source))
    unknown = (tensor_types or {}).keys() - {tensor.name for tensor in model.tensors}
    if unknown:
        raise UsageError(f"{source}: has no tensor {min(unknown)}", "its type was chosen for another model")
    types = predict_types(
        model,
        quant,
        embedding_quant=embedding_quant,
        output_quant=output_quant,
        tensor_types=tensor_types,
        has_imatrix=imatrix is not None,
    )
    covered = imatrix.means.keys() if imatrix is not None else frozenset[str]()
    uncovered = [name for name in needing_imatrix(types, quant) if name not in covered]
    if uncovered:
        raise UsageError(
            f"{chosen.name} needs an importance matrix for {uncovered[0]} and {len(uncovered) - 1} other tensors",
            "provide an importance matrix, or choose a larger quantization",
        )
    entries = imatrix.fitting(model) if imatrix is not None else {}
    request: dict[str, Any] = {
        "op": "quantize",
        "source": os.fsencode(source.resolve()).hex(),
        "target": os.fsencode(target.resolve()).hex(),
        "ftype": chosen.ftype,
        "n_threads": n_threads,
        "embedding_type": ggml_type(embedding_quant).value if embedding_quant else None,
        "output_type": ggml_type(output_quant).value if output_quant else None,
        "tensor_types": {name: ggml_type(kind).value for name, kind in (tensor_types or {}).items()},
        "names": list(entries),
    }
    # The subject is part of every message, so a crash message also names the type.
    child = NativeChild("exporters.llamacpp.quantize_child", f"{source.name} to {chosen.name}", _CRASH_HINT)
    try:
        with progress.task(f"Quantising to {chosen.name}", len(model.tensors), "tensors") as task:
            child.ask(request, list(entries.values()), lambda _message: task.advance())
    except BaseException:
        # The child writes the file, so it must end before the file is removed.
        child.kill()
        target.unlink(missing_ok=True)
        raise
    child.close()
