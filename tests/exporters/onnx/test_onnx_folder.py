"""The ONNX folder: its files are the checkpoint's, equal input gives equal bytes, failures leave nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime_genai", reason="the extra `onnx` is not installed")

import onnx

import exporters.onnx.write
from compact.architectures.table import family_of
from compact.base.errors import (
    CompactEdgeError,
    DamagedFileError,
    EngineCrashedError,
    GateError,
    OutputExistsError,
    QuantizedCheckpointError,
    StorageError,
    ToolUnavailableError,
    UnsupportedArchitectureError,
)
from exporters.native.child import NativeChild
from exporters.onnx import builder as onnx_builder
from exporters.onnx.types import onnx_options
from exporters.onnx.write import check_genai_ids, write_onnx
from tests.checkpoints import copy_checkpoint, write_checkpoint
from tests.exporters.onnx_graphs import graph_logits, mean_kl, reference, write_here

FP32 = onnx_options("fp32")


class Recorder:
    """What a `Progress` receives."""

    def __init__(self) -> None:
        self.total: int | None = None
        self.done = 0

    @contextmanager
    def task(self, description: str, total: int | None, unit: str) -> Iterator[Recorder]:
        self.total = total
        yield self

    def advance(self, amount: int = 1) -> None:
        self.done += amount

    def note(self, text: str) -> None:
        raise AssertionError(text)


@pytest.fixture(scope="session")
def by_child(tied_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorder]:
    """The tied model as int4, written by the child process into an empty directory of an unusual name."""
    folder = tmp_path_factory.mktemp("modèle ü") / "out"
    folder.mkdir()
    recorder = Recorder()
    write_onnx(tied_model, folder, onnx_options("int4", max_length=100), progress=recorder)
    return folder, recorder


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*")}


def test_the_folder(by_child: tuple[Path, Recorder], tied_model: Path) -> None:
    folder, recorder = by_child
    names = {"model.onnx", "model.onnx.data", "genai_config.json", "config.json"}
    assert {path.name for path in folder.iterdir()} == names | {"tokenizer.json", "tokenizer_config.json"}
    assert [path.name for path in folder.parent.iterdir()] == ["out"]
    for name in ("config.json", "tokenizer.json"):
        assert (folder / name).read_bytes() == (tied_model / name).read_bytes()
    before, after = (json.loads((path / "tokenizer_config.json").read_text("utf-8")) for path in (tied_model, folder))
    assert after == {**before, "model_max_length": 256}
    assert recorder.total == recorder.done == 2 + 4
    assert mean_kl(folder, reference(tied_model)) < 0.7
    genai = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
    assert genai["search"]["max_length"] == 100
    model, config = genai["model"], json.loads((tied_model / "config.json").read_text(encoding="utf-8"))
    assert (model["vocab_size"], model["context_length"]) == (config["vocab_size"], 256)
    assert (model["bos_token_id"], model["eos_token_id"]) == (1, 2)
    # No commit of whatever repository lies around the installed package.
    assert onnx.load(str(folder / "model.onnx"), load_external_data=False).producer_version == onnx_builder.installed()


def test_equal_input_gives_equal_bytes(by_child: tuple[Path, Recorder], tied_model: Path, tmp_path: Path) -> None:
    model = copy_checkpoint(tied_model, tmp_path / "elsewhere" / "another name")
    os.utime(model / "model.safetensors", (0, 0))
    write_here(model, tmp_path / "out", onnx_options("int4", max_length=100))
    ours, theirs = files(tmp_path / "out"), files(by_child[0])
    ours["config.json"] = theirs["config.json"]  # the copy writes it with other spaces
    assert ours == theirs
    for name in ("model.onnx", "genai_config.json"):
        assert str(tmp_path).encode() not in ours[name]


def test_onnxruntime_genai_runs_it_in_chunks(tmp_path: Path, tied_model: Path) -> None:
    import onnxruntime_genai as og

    expected = reference(tied_model)
    for options in (onnx_options("fp16"), onnx_options("int8")):
        folder = write_here(tied_model, tmp_path / options.quant, options)
        model = og.Model(str(folder))
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=200)
        generator = og.Generator(model, params)
        for part in (expected.ids[:7], expected.ids[7:40], expected.ids[40:]):
            generator.append_tokens(np.array(part[:150], np.int32))
        last = np.asarray(generator.get_logits()).reshape(-1, expected.logits.shape[1])[-1].astype(np.float32)
        length = 40 + len(expected.ids[40:][:150])
        assert np.abs(last - graph_logits(folder, expected.ids[:length])[-1]).max() < 0.05


def test_special_files_and_the_end_of_a_turn(tmp_path: Path, tied_model: Path) -> None:
    model = copy_checkpoint(
        tied_model, tmp_path / "m", eos_token_id=[0, 3], pad_token_id=-1, max_position_embeddings=128
    )
    (model / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    (model / "special_tokens_map.json").write_text('{"eos_token": "<|im_end|>"}', encoding="utf-8")
    (model / "generation_config.json").write_text('{"eos_token_id": [-1, 4], "top_k": 7}', encoding="utf-8")
    (model / "tokenizer.model").write_bytes(b"not taken")
    (model / "README.md").write_text("not taken", encoding="utf-8")
    folder = write_here(model, tmp_path / "out", onnx_options("fp32", max_length=9999))
    for name in ("chat_template.jinja", "special_tokens_map.json", "generation_config.json"):
        assert (folder / name).read_bytes() == (model / name).read_bytes()
    assert not {"tokenizer.model", "README.md"} & {path.name for path in folder.iterdir()}
    genai = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
    # generation_config.json goes first; the tokenizer's own end token is added, and "none" is left out.
    assert sorted(genai["model"]["eos_token_id"]) == [2, 4]
    assert genai["model"]["pad_token_id"] in (0, 4)
    assert genai["search"]["max_length"] == 128


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"vocab_size": 299}, "vocab_size"),
        ({"bos_token_id": 7}, "bos_token_id"),
        ({"eos_token_id": [2]}, "eos_token_id"),
        ({"eos_token_id": [2, 3, 300]}, "eos_token_id"),
        ({"pad_token_id": 5}, "pad_token_id"),
        ({"pad_token_id": None}, "pad_token_id"),
    ],
)
def test_a_genai_config_that_says_something_else(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    ids = {"bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 0}
    config = {"vocab_size": 300, **ids}
    family = family_of({"architectures": ["LlamaForCausalLM"]}, "here")
    check_genai_ids(tmp_path, {"model": config}, config, family)
    with pytest.raises(GateError, match=named):
        check_genai_ids(tmp_path, {"model": {**config, **changes}}, config, family)


def nothing_in(folder: Path) -> bool:
    return list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (ValueError("two\nlines"), UnsupportedArchitectureError),
        (KeyError("rope_type"), UnsupportedArchitectureError),
        (NotImplementedError("not yet"), UnsupportedArchitectureError),
        (OSError("Transformers found no file"), UnsupportedArchitectureError),
        (OSError(28, "No space left on device"), StorageError),
        (OSError("1000000 requested and 100000 written"), StorageError),
        (MemoryError(), ToolUnavailableError),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), ToolUnavailableError),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_the_builder_raises_is_one_line_and_leaves_nothing(
    tmp_path: Path, tied_model: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, kind: type[CompactEdgeError]
) -> None:
    def fail(_checkpoint: Path, folder: Path, *_: Any) -> None:
        (folder / "model.onnx").write_bytes(b"half")
        raise raised

    monkeypatch.setattr(onnx_builder, "build", fail)
    target = tmp_path / "where"
    target.mkdir()
    with pytest.raises(kind) as caught:
        write_here(tied_model, target / "out", FP32)
    assert "\n" not in caught.value.message
    assert caught.value.message.startswith(f"{tied_model.name} to ONNX fp32: ")
    assert nothing_in(target)


def test_a_child_that_dies_leaves_nothing(tmp_path: Path, tied_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def aborting(_module: str, *words: str, **more: str) -> NativeChild:
        return NativeChild("tests.exporters.aborting_child", *words, **more)

    monkeypatch.setattr(exporters.onnx.write, "NativeChild", aborting)
    with pytest.raises(EngineCrashedError, match=r"model builder died during build \(SIGABRT") as caught:
        write_onnx(tied_model, tmp_path / "out", FP32)
    assert "memory" in str(caught.value.hint)
    assert nothing_in(tmp_path)


def test_another_version_is_refused(tmp_path: Path, tied_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_builder, "installed", lambda: "0.19.0")
    with pytest.raises(ToolUnavailableError, match=r"0\.19\.0") as caught:
        write_here(tied_model, tmp_path / "out", FP32)
    assert "compact-edge[onnx]" in str(caught.value.hint)


def test_damaged_checkpoints_and_full_folders(tmp_path: Path, tied_model: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "model.onnx").write_bytes(b"older")
    with pytest.raises(OutputExistsError):
        write_onnx(tied_model, full, FP32)
    assert (full / "model.onnx").read_bytes() == b"older"

    missing = copy_checkpoint(tied_model, tmp_path / "missing")
    (missing / "tokenizer_config.json").unlink()
    with pytest.raises(DamagedFileError, match=r"tokenizer_config\.json"):
        write_onnx(missing, tmp_path / "out", FP32)
    quantised = write_checkpoint(tmp_path / "q", dtype=torch.float8_e4m3fn)
    with pytest.raises(QuantizedCheckpointError, match="F8"):
        write_onnx(quantised, tmp_path / "out", FP32)
    deeper = copy_checkpoint(tied_model, tmp_path / "deeper", num_hidden_layers=3)
    with pytest.raises(DamagedFileError, match=r"layers\.2"):
        write_onnx(deeper, tmp_path / "out", FP32)
    assert not (tmp_path / "out").exists()


def test_the_child_is_offline_and_quiet() -> None:
    program = (
        "from exporters.onnx.builder_child import be_quiet; be_quiet(); import huggingface_hub.constants as c, logging;"
        "print(c.HF_HUB_OFFLINE, logging.getLogger('x').isEnabledFor(logging.ERROR))"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
