"""Quantises a GGUF through `llama_model_quantize` of llama.cpp, in a child process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from compact.errors import OutputExistsError, UsageError
from compact.progress import SILENT, Progress
from exporters.gguf_header import read_header
from exporters.imatrix import Imatrix
from exporters.native import NativeChild
from exporters.quant_types import ggml_type, needing_imatrix, predict_types, quant_named

_CRASH_HINT = "choose another type, or measure the importance matrix on other text; memory may also have run out"


def quantize_gguf(
    source: Path,
    target: Path,
    quant: str,
    *,
    imatrix: Imatrix | None = None,
    embedding_quant: str | None = None,
    output_quant: str | None = None,
    n_threads: int = 1,
    progress: Progress = SILENT,
) -> None:
    """Write `target`, the quantised `source`.

    What every tensor becomes is what `quant_types.predict_types` says. The child dies with this process and with
    any exception here (Ctrl-C included), and `target` is removed unless it is complete.

    Args:
        source: a GGUF of float types.
        target: a path at which nothing is yet; its directory is there.
        quant: a name of `quant_types.QUANTS`.
        imatrix: importance matrix; entries for tensors that the source lacks are ignored.
        embedding_quant: type of token_embd, where not the mixture's.
        output_quant: type of the output, where not the mixture's; with tied embeddings that is token_embd.
        n_threads: threads for quantising.
        progress: gets one unit a tensor.

    Raises:
        UsageError: an unknown name, or an importance matrix is needed and not given.
        BudgetError: `embedding_quant` or `output_quant` does not fit the rows, or llama.cpp has no fallback for them.
        OutputExistsError: something is at `target`.
        ModelNotFoundError, DamagedFileError, QuantizedCheckpointError: the source.
        GateError: the quantised values are not finite.
        StorageError: the file system refused.
        EngineCrashedError: llama.cpp aborted.
    """
    chosen = quant_named(quant)
    if n_threads < 1:
        raise UsageError(f"{n_threads} threads are too few")
    if os.path.lexists(target):
        raise OutputExistsError(f"{target} is there already")
    model = read_header(source).model_shape(str(source))
    types = predict_types(
        model, quant, embedding_quant=embedding_quant, output_quant=output_quant, has_imatrix=imatrix is not None
    )
    covered = imatrix.means.keys() if imatrix is not None else frozenset[str]()
    blind = [name for name in needing_imatrix(types, quant) if name not in covered]
    if blind:
        raise UsageError(
            f"{chosen.name} needs an importance matrix for {blind[0]} and {len(blind) - 1} other tensors",
            "calibrate with an importance matrix, or choose a larger quantization",
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
        "names": list(entries),
    }
    # The subject stands in every message: a crash must say which type it came from.
    child = NativeChild("exporters.quantize_child", f"{source.name} to {chosen.name}", _CRASH_HINT)
    try:
        with progress.task(f"Quantising to {chosen.name}", len(model.tensors), "tensors") as task:
            child.ask(request, list(entries.values()), lambda _message: task.advance())
    except BaseException:
        # The child writes the file: it must be gone before the file is removed.
        child.kill()
        target.unlink(missing_ok=True)
        raise
    child.close()
