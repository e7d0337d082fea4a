"""onnxruntime's engine against Transformers, and folders that are not what they claim."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from compact.base.errors import (
    CompactEdgeError,
    DamagedFileError,
    EngineCrashedError,
    ModelNotFoundError,
    UnsafePathError,
    UsageError,
)
from exporters.llamacpp.engine import kl_divergence
from exporters.onnx.ort_engine import OnnxEngine
from tests.checkpoints import TEXTS
from tests.exporters.small_gguf import encode, reference_logits
from tests.exporters.small_onnx import CONTEXT, copy_of, edit_graph, edit_json, move_data
from tests.processes import gone


@pytest.fixture(scope="module")
def ids(onnx_checkpoint: Path) -> list[int]:
    # More than one chunk, and no multiple of it.
    return encode(onnx_checkpoint, "".join(TEXTS))[:201]


@pytest.fixture(scope="module")
def expected(onnx_checkpoint: Path, ids: list[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return reference_logits(onnx_checkpoint, ids)


def test_logits_and_scores_equal_transformers(onnx_fp32: Path, ids: list[int], expected: Any) -> None:
    assert len(ids) == 201 and expected.std() > 0.5  # a model whose logits are all alike would prove nothing
    with OnnxEngine(onnx_fp32) as engine:
        assert (engine.n_vocab, engine.context_length) == (expected.shape[1], CONTEXT)
        assert (engine.bos, engine.eog, engine.execution_provider) == (1, (2,), "cpu")
        for n_decode in (0, 33, len(ids)):
            logits = engine.logits(ids, n_decode=n_decode)
            assert logits.shape == expected.shape and logits.dtype == np.float32
            assert np.abs(logits - expected).max() < 1e-4
        scores = engine.score(ids)
        assert engine.logits(ids[:1]).shape == (1, engine.n_vocab)
    log_softmax = torch.log_softmax(torch.tensor(expected, dtype=torch.float64), dim=-1).numpy()
    assert scores.dtype == np.float64
    assert np.abs(scores - log_softmax[np.arange(len(ids) - 1), ids[1:]]).max() < 1e-4


def test_greedy_generation_is_the_argmax_of_transformers(
    onnx_checkpoint: Path, onnx_fp32: Path, ids: list[int]
) -> None:
    prompt, expected, gaps = ids[:150], list[int](), list[float]()
    for _ in range(6):
        row = reference_logits(onnx_checkpoint, prompt + expected)[-1]
        best = np.sort(row)[-2:]
        expected.append(int(row.argmax()))
        gaps.append(float(best[1] - best[0]))
    with OnnxEngine(onnx_fp32, n_threads=2) as engine:
        free = engine.generate(prompt, 6)
        stopped = engine.generate(prompt, 6, stop={expected[2]})
    assert free.ids == expected
    assert np.allclose(free.gaps, gaps, atol=1e-3)
    first = expected.index(expected[2])
    assert stopped.ids == expected[: first + 1] and len(stopped.gaps) == first + 1


def test_other_types_run_on_the_cpu(onnx_int4: Path, onnx_cuda: Path, ids: list[int], expected: Any) -> None:
    with OnnxEngine(onnx_int4) as engine:
        assert 0 < kl_divergence(expected, engine.logits(ids, n_decode=8)).mean() < 1
    with OnnxEngine(onnx_cuda) as engine:
        assert engine.execution_provider == "cuda"
        logits = engine.logits(ids, n_decode=8)
    assert logits.dtype == np.float32
    assert np.abs(logits - expected).max() < 0.2  # float16


def test_lengths_and_ids_are_checked(onnx_fp32: Path) -> None:
    with OnnxEngine(onnx_fp32, n_ctx=8) as engine:
        for call in (
            lambda: engine.logits([]),
            lambda: engine.logits([1] * 9),
            lambda: engine.logits([1, 2], n_decode=3),
            lambda: engine.logits([1, 2], n_decode=-1),
            lambda: engine.logits([engine.n_vocab]),
            lambda: engine.logits([-1]),
            lambda: engine.score([1]),
            lambda: engine.generate([1, 2], 7),
            lambda: engine.generate([1], 0),
        ):
            with pytest.raises(UsageError):
                call()
        assert engine.logits([1] * 8).shape == (8, engine.n_vocab)  # and it still answers
        pid = engine.pid
    assert gone(pid)
    for options in ({"n_ctx": 0}, {"n_threads": 0}):
        with pytest.raises(UsageError):
            OnnxEngine(onnx_fp32, **options)


def test_a_dead_child_is_a_typed_error(onnx_fp32: Path) -> None:
    with OnnxEngine(onnx_fp32) as engine:
        os.kill(engine.pid, signal.SIGSEGV)
        with pytest.raises(EngineCrashedError, match="onnxruntime died during logits \\(SIGSEGV\\)"):
            for _ in range(100):
                engine.logits([1])
        with pytest.raises(EngineCrashedError, match="has ended"):
            engine.logits([1])


@pytest.mark.parametrize("name", ["model.onnx", "genai_config.json"])
def test_a_file_that_is_not_there(onnx_fp32: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        OnnxEngine(tmp_path / "none")
    folder = copy_of(onnx_fp32, tmp_path / "folder")
    (folder / name).unlink()
    with pytest.raises(ModelNotFoundError, match=name):
        OnnxEngine(folder)


@pytest.mark.parametrize("location", ["../model.onnx.data", "/etc/passwd", "sub/data", "..", "C:\\data", ""])
def test_data_outside_the_folder_is_not_read(onnx_fp32: Path, tmp_path: Path, location: str) -> None:
    folder = copy_of(onnx_fp32, tmp_path / "folder")
    (tmp_path / "model.onnx.data").write_bytes((folder / "model.onnx.data").read_bytes())  # it would be read
    edit_graph(folder, move_data(location))
    with pytest.raises(UnsafePathError) as caught:
        OnnxEngine(folder)
    assert "\n" not in caught.value.message


def test_data_outside_the_folder_inside_a_node_is_not_read(onnx_fp32: Path, tmp_path: Path) -> None:
    def hide(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.op_type == "Constant")
        tensor = node.attribute[0].t
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../../secret")

    folder = copy_of(onnx_fp32, tmp_path / "folder")
    edit_graph(folder, hide)
    with pytest.raises(UnsafePathError):
        OnnxEngine(folder)


def set_decoder(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["model"]["decoder"].update({key: value})


def set_model(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["model"].update({key: value})


CONFIGS: dict[str, tuple[Callable[[dict[str, Any]], None], type[CompactEdgeError]]] = {
    "graph above": (set_decoder("filename", "../model.onnx"), UnsafePathError),
    "graph elsewhere": (set_decoder("filename", "/tmp/model.onnx"), UnsafePathError),
    "graph is no name": (set_decoder("filename", ["model.onnx"]), CompactEdgeError),
    "library": (set_decoder("session_options", {"custom_ops_library": "/tmp/x.so"}), UnsafePathError),
    "profile": (set_decoder("session_options", {"enable_profiling": "/tmp/x"}), UnsafePathError),
    "options are no object": (set_decoder("session_options", []), DamagedFileError),
    "providers are no objects": (set_decoder("session_options", {"provider_options": ["cuda"]}), DamagedFileError),
    "pipeline": (set_decoder("pipeline", [{"a": {"filename": "../b.onnx"}}]), UnsafePathError),
    "another graph": (set_model("vision", {"filename": "../vision.onnx"}), UnsafePathError),
    "settings of images": (set_model("vision", {"config_filename": "/etc/passwd"}), UnsafePathError),
    "context": (set_model("context_length", -1), DamagedFileError),
    "vocabulary": (set_model("vocab_size", "many"), DamagedFileError),
    "ids": (set_model("eos_token_id", ["2"]), DamagedFileError),
    "heads": (set_decoder("num_key_value_heads", 3), DamagedFileError),
    "head size": (set_decoder("head_size", True), DamagedFileError),
    "decoder": (set_model("decoder", None), DamagedFileError),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_hostile_configuration_is_refused(onnx_fp32: Path, tmp_path: Path, name: str) -> None:
    change, error = CONFIGS[name]
    folder = copy_of(onnx_fp32, tmp_path / "folder")
    edit_json(folder / "genai_config.json", change)
    with pytest.raises(error) as caught:
        OnnxEngine(folder)
    assert "\n" not in caught.value.message and caught.value.exit_code == 65


def test_a_model_without_bos(onnx_fp32: Path, tmp_path: Path) -> None:
    folder = copy_of(onnx_fp32, tmp_path / "folder")
    edit_json(folder / "genai_config.json", set_model("bos_token_id", None))
    edit_json(folder / "genai_config.json", set_model("eos_token_id", [2, 0]))
    with OnnxEngine(folder) as engine:
        assert (engine.bos, engine.eog) == (-1, (2, 0))


def not_a_graph(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"\xff" * 4000)


def torn_graph(folder: Path) -> None:
    content = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(content[: len(content) // 2])


def torn_data(folder: Path) -> None:
    content = (folder / "model.onnx.data").read_bytes()
    (folder / "model.onnx.data").write_bytes(content[: len(content) // 2])


def no_data(folder: Path) -> None:
    (folder / "model.onnx.data").unlink()


def no_json(folder: Path) -> None:
    (folder / "genai_config.json").write_text("{")


def unknown_operator(folder: Path) -> None:
    edit_graph(folder, lambda model: setattr(model.graph.node[3], "op_type", "NoSuchOperator"))


def no_cache(folder: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        for value in model.graph.output:
            value.name = value.name.replace("present.", "later.")
        for node in model.graph.node:
            node.output[:] = [name.replace("present.", "later.") for name in node.output]

    edit_graph(folder, change)


@pytest.mark.parametrize("damage", [not_a_graph, torn_graph, torn_data, no_data, no_json, unknown_operator, no_cache])
def test_a_damaged_folder_is_refused(onnx_fp32: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = copy_of(onnx_fp32, tmp_path / "folder")
    damage(folder)
    with pytest.raises(DamagedFileError) as caught:
        OnnxEngine(folder)
    assert "\n" not in caught.value.message and "folder" in caught.value.message


def test_flipped_bytes_never_escape_as_another_error(onnx_fp32: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    data = (onnx_fp32 / "model.onnx").read_bytes()
    folder = copy_of(onnx_fp32, tmp_path / "folder")
    for _ in range(5):
        broken = bytearray(data)
        for at in rng.integers(0, len(data), 8):
            broken[at] ^= int(rng.integers(1, 256))
        (folder / "model.onnx").write_bytes(broken)
        try:
            with OnnxEngine(folder) as engine:
                engine.logits([1, 2])
        except CompactEdgeError:
            pass
