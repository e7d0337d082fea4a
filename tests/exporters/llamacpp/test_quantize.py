"""Quantising: what it writes, what it refuses, and how it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import psutil
import pytest

import exporters.llamacpp.quantize
from compact.base.errors import (
    BudgetError,
    DamagedFileError,
    EngineCrashedError,
    GateError,
    ModelNotFoundError,
    OutputExistsError,
    QuantizedCheckpointError,
    UsageError,
)
from compact.base.progress import Task
from compact.checkpoints.gguf_file import read_gguf
from exporters.llamacpp.header import read_header
from exporters.llamacpp.imatrix import Imatrix
from exporters.llamacpp.quant_types import QUANTS
from exporters.llamacpp.quantize import quantize_gguf
from exporters.native.child import NativeChild
from tests.exporters.small_gguf import random_gguf, random_imatrix
from tests.processes import gone
from tests.small_builds import ROOT

SIZES: dict[str, Any] = {
    "n_layer": 2,
    "hidden": 256,
    "n_ff": 256,
    "n_head": 4,
    "n_head_kv": 2,
    "vocab": 64,
    "tied": True,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_gguf(tmp_path_factory.mktemp("source") / "in.gguf", **SIZES)


class Recorder:
    """Counts the steps that a task reports."""

    def __init__(self) -> None:
        self.done = 0
        self.total: int | None = None

    @contextmanager
    def task(self, description: str, total: int | None, unit: str) -> Iterator[Task]:
        assert "Q4_K_M" in description and unit == "tensors"
        self.total = total
        yield self

    def advance(self, amount: int = 1) -> None:
        self.done += amount

    def note(self, text: str) -> None:
        raise AssertionError(text)


def values_of(path: Path, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    file = read_gguf(path)
    tensor = file.tensors[name]
    return gguf.quants.dequantize(file.read_rows(tensor, 0, tensor.shape[0]), tensor.qtype)  # type: ignore[no-any-return]


def test_values_stay_near_and_progress_counts_tensors(source: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    target = tmp_path / "Ümlaut and space.gguf"
    quantize_gguf(source, target, "q4_k_m", progress=recorder)
    assert recorder.done == recorder.total == len(read_header(source).tensors)
    for name, limit in (("blk.1.ffn_up.weight", 0.12), ("token_embd.weight", 0.03)):
        before, after = values_of(source, name), values_of(target, name)
        assert 0 < np.sqrt(((after - before) ** 2).mean()) < limit * before.std()


def test_an_importance_matrix_changes_bytes_and_lowers_the_weighted_error(source: Path, tmp_path: Path) -> None:
    model = read_header(source).model_shape("in.gguf")
    name = "blk.0.ffn_gate.weight"
    weights = np.full(256, 0.01, dtype=np.float32)
    weights[::16] = 100.0
    matrix = Imatrix({name: weights}, {name: np.array([1], dtype=np.int64)}, tokens=1)
    quantize_gguf(source, tmp_path / "plain.gguf", "Q4_0")
    quantize_gguf(source, tmp_path / "weighted.gguf", "Q4_0", imatrix=matrix)
    exact = values_of(source, name)
    plain, weighted = (values_of(tmp_path / f"{kind}.gguf", name) for kind in ("plain", "weighted"))
    errors = [float((((values - exact) ** 2) * weights).sum()) for values in (plain, weighted)]
    assert errors[1] < 0.7 * errors[0]
    # A matrix without an entry keeps its bytes; nothing else was touched.
    other = "blk.1.ffn_gate.weight"
    assert np.array_equal(values_of(tmp_path / "plain.gguf", other), values_of(tmp_path / "weighted.gguf", other))
    # The same input gives the same bytes, and threads do not matter.
    quantize_gguf(source, tmp_path / "again.gguf", "Q4_0", imatrix=matrix, n_threads=2)
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "weighted.gguf").read_bytes()
    assert set(random_imatrix(model).fitting(model)) > {name}


def test_what_needs_an_importance_matrix_is_refused_without(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out.gguf"
    with pytest.raises(UsageError, match="IQ2_XXS needs an importance matrix"):
        quantize_gguf(source, target, "IQ2_XXS")
    # llama.cpp's own refusal arrives as the same class, should its rules ever change.
    monkeypatch.setattr(exporters.llamacpp.quantize, "needing_imatrix", lambda _types, _quant: [])
    with pytest.raises(UsageError, match="cpp needs an importance matrix") as caught:
        quantize_gguf(source, target, "IQ2_XXS")
    assert "===" not in caught.value.message and not target.exists()


@pytest.mark.parametrize("embedding", ["IQ2_XXS", "IQ2_XS", "IQ1_S"])
def test_an_embedding_that_needs_an_importance_matrix(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embedding: str
) -> None:
    """llama.cpp asks for one for every matrix but the embedding, and there it aborts: GGML_ASSERT(imatrix != NULL)."""
    target = tmp_path / "out.gguf"
    with pytest.raises(UsageError, match=r"importance matrix for token_embd\.weight"):
        quantize_gguf(source, target, "Q4_0", embedding_quant=embedding)
    monkeypatch.setattr(exporters.llamacpp.quantize, "needing_imatrix", lambda _types, _quant: [])
    with pytest.raises(EngineCrashedError, match=r"to Q4_0: llama\.cpp died .*GGML_ASSERT\(imatrix != NULL\)"):
        quantize_gguf(source, target, "Q4_0", embedding_quant=embedding)
    assert not target.exists()


@pytest.mark.parametrize("quant", ["IQ3_S", "IQ3_M"])
def test_an_assertion_of_llama_cpp_is_an_error_that_names_the_type(source: Path, tmp_path: Path, quant: str) -> None:
    """Importance near the end of float32 overflows in its search for a scale: GGML_ASSERT(scale >= 0)."""
    model = read_header(source).model_shape("in.gguf")
    means = {t.name: np.full(t.row, 3e38, dtype=np.float32) for t in model.tensors if t.name.startswith("blk.")}
    matrix = Imatrix(means, {name: np.array([1], dtype=np.int64) for name in means}, tokens=1)
    with pytest.raises(EngineCrashedError, match=rf"in\.gguf to {quant}: .*GGML_ASSERT") as caught:
        quantize_gguf(source, tmp_path / "out.gguf", quant, imatrix=matrix)
    assert caught.value.exit_code == 69 and "choose another type" in str(caught.value.hint)
    assert "\n" not in caught.value.message and not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("quant", [name for name, quant in QUANTS.items() if quant.writer == "llama"])
def test_an_abort_in_any_type_is_an_error_that_names_it(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quant: str
) -> None:
    class Aborting(NativeChild):
        def __init__(self, _module: str, subject: str, crash_hint: str) -> None:
            super().__init__("tests.exporters.aborting_child", subject, crash_hint)

    monkeypatch.setattr(exporters.llamacpp.quantize, "NativeChild", Aborting)
    matrix = random_imatrix(read_header(source).model_shape("in.gguf"))
    with pytest.raises(EngineCrashedError, match=rf"to {quant}: .*\(SIGABRT\): GGML_ASSERT\(false\) failed"):
        quantize_gguf(source, tmp_path / "out.gguf", quant, imatrix=matrix)


def test_refusals_leave_nothing_behind(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    with pytest.raises(UsageError):
        quantize_gguf(source, target, "Q9_9")
    with pytest.raises(ModelNotFoundError):
        quantize_gguf(tmp_path / "none.gguf", target, "Q4_0")
    with pytest.raises(UsageError):
        quantize_gguf(source, target, "Q4_0", n_threads=0)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(source.read_bytes()[:-5000])
    with pytest.raises(DamagedFileError):
        quantize_gguf(cut, target, "Q4_0")
    odd = random_gguf(tmp_path / "odd.gguf", **{**SIZES, "hidden": 288})
    with pytest.raises(BudgetError):
        quantize_gguf(odd, target, "Q4_0", embedding_quant="Q6_K")
    foreign = Imatrix(
        {"blk.0.ffn_up.weight": np.ones(255, dtype=np.float32)}, {"blk.0.ffn_up.weight": np.array([1])}, tokens=1
    )
    with pytest.raises(DamagedFileError, match="255"):
        quantize_gguf(source, target, "Q4_0", imatrix=foreign)
    assert not target.exists()
    target.write_bytes(b"mine")
    with pytest.raises(OutputExistsError):
        quantize_gguf(source, target, "Q4_0")
    assert target.read_bytes() == b"mine"


def test_a_quantised_source_is_refused(source: Path, tmp_path: Path) -> None:
    quantize_gguf(source, tmp_path / "q4.gguf", "Q4_0")
    with pytest.raises(QuantizedCheckpointError, match="requantizing"):
        quantize_gguf(tmp_path / "q4.gguf", tmp_path / "q5.gguf", "Q5_0")
    assert not (tmp_path / "q5.gguf").exists()


def test_weights_that_are_not_finite_are_a_typed_error(source: Path, tmp_path: Path) -> None:
    file = read_gguf(source)
    data = bytearray(source.read_bytes())
    at = file.tensors["blk.0.ffn_up.weight"].offset
    data[at : at + 2] = np.array([np.nan], dtype="<f2").tobytes()
    bad = tmp_path / "nan.gguf"
    bad.write_bytes(data)
    with pytest.raises((DamagedFileError, GateError)):
        quantize_gguf(bad, tmp_path / "out.gguf", "Q4_0")
    assert not (tmp_path / "out.gguf").exists()


def test_a_crash_of_the_child_is_a_typed_error(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = NativeChild.ask

    def killed(self: NativeChild, *args: object, **kwargs: object) -> object:
        psutil.Process(self.pid).kill()
        return ask(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(NativeChild, "ask", killed)
    with pytest.raises(EngineCrashedError, match="SIGKILL"):
        quantize_gguf(source, tmp_path / "out.gguf", "Q4_0")
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_child_at_once(tmp_path: Path, number: signal.Signals) -> None:
    big = random_gguf(
        tmp_path / "big.gguf", n_layer=2, hidden=1024, n_ff=4096, n_head=8, n_head_kv=8, vocab=64, tied=True
    )
    target = tmp_path / "out.gguf"
    program = (
        "import sys\nfrom pathlib import Path\nfrom exporters.llamacpp.quantize import quantize_gguf\n"
        "quantize_gguf(Path(sys.argv[1]), Path(sys.argv[2]), 'IQ4_XS')\n"
    )
    command = [sys.executable, "-c", program, str(big), str(target)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as parent:
        deadline = time.monotonic() + 60
        while not target.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        (child,) = psutil.Process(parent.pid).children()
        begin = time.monotonic()
        parent.send_signal(number)
        assert parent.wait(20) != 0
    assert gone(child.pid) and time.monotonic() - begin < 5
    if number is signal.SIGINT:  # with SIGTERM Python does not get to clean up unless the program asks for it
        assert not target.exists()
