"""ONNX folders for the tests: written without the child process, and run through plain onnxruntime."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

import exporters.onnx.write
from exporters.gate import Reference, reference_for
from exporters.native.child import _failure
from exporters.native.child_main import RefusedError
from exporters.onnx.builder_child import Server
from exporters.onnx.types import OnnxOptions
from exporters.onnx.write import write_onnx
from tests.checkpoints import TEXTS

Floats = npt.NDArray[np.float32]


class InProcess:
    """Stands in for `NativeChild`: the child's server runs here, which saves five seconds of imports a model."""

    def __init__(self, module: str, subject: str, crash_hint: str = "", *, library: str = "") -> None:
        assert module == "exporters.onnx.builder_child"
        self._subject = subject

    def ask(self, header: Any, arrays: Any, on_progress: Callable[[Any], None]) -> Any:
        class Told:
            def progress(self, **values: Any) -> None:
                on_progress(values)

        try:
            return Server(Told())(header, list(arrays))  # type: ignore[arg-type]
        except RefusedError as error:
            raise _failure({"kind": error.kind, "message": error.message, "hint": error.hint}, self._subject) from error

    def kill(self) -> None:
        pass

    def close(self) -> None:
        pass


def without_child(patch: pytest.MonkeyPatch) -> None:
    """From now on the model builder runs in this process, also for the commands."""
    patch.setattr(exporters.onnx.write, "NativeChild", InProcess)


def write_here(checkpoint: Path, folder: Path, options: OnnxOptions, **more: Any) -> Path:
    """`write_onnx` without a child process."""
    with pytest.MonkeyPatch.context() as patch:
        without_child(patch)
        write_onnx(checkpoint, folder, options, **more)
    return folder


def reference(checkpoint: Path) -> Reference:
    """Transformers' logits of some 200 tokens, more than every window of the test models."""
    found = reference_for(checkpoint, TEXTS * 2, greedy=False)
    assert len(found.ids) > 100
    return Reference(found.ids[:200], found.logits[:200], [])


def graph_logits(folder: Path, ids: Sequence[int]) -> Floats:
    """Logits of a folder through onnxruntime on the CPU: a prefill, a chunk with a past, then single tokens."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    sizes = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]["decoder"]
    types = {entry.name: entry.type for entry in session.get_inputs()}
    names = [name for name in types if name.startswith("past_key_values.")]
    width = np.float16 if "float16" in types[names[0]] else np.float32
    shape = (1, sizes["num_key_value_heads"], 0, sizes["head_size"])
    past: dict[str, Any] = {name: np.zeros(shape, width) for name in names}
    outputs = [entry.name for entry in session.get_outputs()]
    rows, done = [], 0
    for chunk in (ids[:40], ids[40:-12], *([token] for token in ids[-12:])):
        feed = {"input_ids": np.array([chunk], np.int64), **past}
        feed["attention_mask"] = np.ones((1, done + len(chunk)), np.int64)
        if "position_ids" in types:
            feed["position_ids"] = np.arange(done, done + len(chunk), dtype=np.int64)[None]
        answer = dict(zip(outputs, session.run(None, feed), strict=True))
        rows.append(answer["logits"][0])
        done += len(chunk)
        past = {name: answer[name.replace("past_key_values", "present")] for name in names}
    return np.concatenate(rows).astype(np.float32)


def difference(folder: Path, expected: Reference) -> float:
    """Largest difference of a logit."""
    return float(np.abs(graph_logits(folder, expected.ids) - expected.logits).max())


def mean_kl(folder: Path, expected: Reference) -> float:
    """Mean KL divergence in nats from Transformers to the graph."""
    theirs, ours = (
        values - np.log(np.exp(values).sum(-1, keepdims=True))
        for values in (expected.logits.astype(np.float64), graph_logits(folder, expected.ids).astype(np.float64))
    )
    return float((np.exp(theirs) * (theirs - ours)).sum(-1).mean())
