"""Texts without a context, and whole texts, follow the same token in every runtime: the one of lm_eval's own model."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import gguf
import pytest

from compact.forward.load import load_model
from compact.sources.from_gguf import read_gguf_checkpoint
from compact.vocabulary.tokenizer import load_tokenizer
from compact_edge.tasks.checkpoint import CheckpointRuntime
from compact_edge.tasks.lm_eval_model import TaskModel
from exporters.gguf.tasks import GgufRuntime
from exporters.gguf_writer.write import write_gguf
from exporters.onnx.tasks import OnnxRuntime
from exporters.task_runtime import Runtime
from tests.checkpoints import SPECIALS, TEXTS, write_checkpoint
from tests.exporters.small_onnx import export

END, BEGIN, TURN = SPECIALS  # ids 0, 1 and 2


def write_model(out: Path, *, bos: bool, ids: dict[str, int], names: dict[str, str | None]) -> Path:
    """A checkpoint whose config.json has `ids` and whose tokenizer_config.json has `names` alone."""
    write_checkpoint(out, "qwen2", pre="qwen2", bos=bos, **ids)
    path = out / "tokenizer_config.json"
    config = {key: value for key, value in json.loads(path.read_text()).items() if not key.endswith("_token")}
    path.write_text(json.dumps({**config, **names}), encoding="utf-8")
    return out


def runtimes(checkpoint: Path, root: Path) -> Iterator[Runtime]:
    write_gguf(checkpoint, root / "m.gguf", "F32")
    export(checkpoint, root / "onnx", "fp32")
    for make in (
        lambda: CheckpointRuntime(checkpoint, device="cpu"),
        lambda: GgufRuntime(root / "m.gguf", threads=1),
        lambda: OnnxRuntime(root / "onnx", threads=1),
    ):
        runtime: Runtime = make()
        try:
            yield runtime
        finally:
            runtime.close()


MODELS: dict[str, dict[str, Any]] = {
    # Qwen's instruct models: config.json has the padding for BOS.
    "no BOS but in config.json": {
        "bos": False,
        "ids": {"bos_token_id": 0, "eos_token_id": 2},
        "names": {"bos_token": None, "eos_token": TURN, "pad_token": END},
    },
    "no BOS, another in config.json": {
        "bos": False,
        "ids": {"bos_token_id": 1, "eos_token_id": 2},
        "names": {"eos_token": TURN, "pad_token": END},
    },
    "BOS that nothing adds": {
        "bos": False,
        "ids": {"bos_token_id": 1, "eos_token_id": 2},
        "names": {"bos_token": BEGIN, "eos_token": TURN, "pad_token": TURN},
    },
    "BOS that pads": {
        "bos": False,
        "ids": {"bos_token_id": 0, "eos_token_id": 2},
        "names": {"bos_token": END, "eos_token": TURN, "pad_token": END},
    },
    "BOS that the tokenizer adds": {
        "bos": True,
        "ids": {"bos_token_id": 1, "eos_token_id": 2},
        "names": {"bos_token": BEGIN, "eos_token": TURN, "pad_token": END},
    },
}


def lm_evals_own(checkpoint: Path) -> Any:
    """`HFLM` around a checkpoint."""
    pytest.importorskip("lm_eval")
    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    with pytest.MonkeyPatch.context() as patch:
        if find_spec("accelerate") is None:  # imported at the top of the module, and not used for a model that is there
            absent: Any = ModuleType("accelerate")
            absent.Accelerator = absent.InitProcessGroupKwargs = absent.find_executable_batch_size = None
            absent.get_max_memory = None
            patch.setitem(sys.modules, "accelerate", absent)
            patch.setitem(sys.modules, "accelerate.utils", absent)
        huggingface = importlib.import_module("lm_eval.models.huggingface")
    return huggingface.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)


@pytest.mark.parametrize("kind", MODELS)
def test_scores_are_those_of_lm_evals_own_model(tmp_path: Path, kind: str) -> None:
    checkpoint = write_model(tmp_path / "m", **MODELS[kind])
    theirs = lm_evals_own(checkpoint)
    empty = [SimpleNamespace(args=("", text)) for text in TEXTS]
    # Longer than the 256 positions: in windows.
    whole = [SimpleNamespace(args=(text,)) for text in (*TEXTS, " ".join(TEXTS * 2))]
    expected = [value for value, _ in theirs.loglikelihood(empty, disable_tqdm=True)]
    rolling = theirs.loglikelihood_rolling(whole, disable_tqdm=True)
    for runtime in runtimes(checkpoint, tmp_path):
        assert runtime.prefix_token == theirs.prefix_token_id, runtime.name
        model = TaskModel(runtime)
        assert [value for value, _ in model.loglikelihood(empty)] == pytest.approx(expected, abs=5e-3)
        assert model.loglikelihood_rolling(whole) == pytest.approx(rolling, rel=1e-4)


@pytest.mark.parametrize("kind", MODELS)
def test_a_checkpoint_made_of_a_gguf_has_its_first_token(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("llama_cpp")
    checkpoint = write_model(tmp_path / "m", **MODELS[kind])
    write_gguf(checkpoint, tmp_path / "m.gguf", "F32")
    (tmp_path / "back").mkdir()
    read_gguf_checkpoint(tmp_path / "m.gguf", tmp_path / "back")
    before, after = load_tokenizer(checkpoint), load_tokenizer(tmp_path / "back")
    assert (after.bos_token_id, after.eos_token_id) == (before.bos_token_id, before.eos_token_id)
    write_gguf(tmp_path / "back", tmp_path / "again.gguf", "F32")
    first = []
    for name in ("m.gguf", "again.gguf"):
        runtime = GgufRuntime(tmp_path / name, threads=1)
        first.append(runtime.prefix_token)
        runtime.close()
    assert first[0] == first[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma4", "llama3", "qwen2", "qwen2 as in Instruct"])
def test_real_tokenizers(data_dir: Path, tmp_path: Path, name: str) -> None:
    pytest.importorskip("llama_cpp")
    folder = data_dir / "tokenizers" / name.partition(" ")[0]
    family = {"gemma4": "gemma3_text", "llama3": "llama"}.get(folder.name, "qwen2")
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    checkpoint = write_checkpoint(tmp_path / "m", family, tokenizer=document)
    for file in folder.glob("tokenizer*"):
        shutil.copyfile(file, checkpoint / file.name)
    if "Instruct" in name:
        by_text = {entry["content"]: entry["id"] for entry in document["added_tokens"]}
        for file_name, changes in (
            ("tokenizer_config.json", {"bos_token": None, "eos_token": "<|im_end|>"}),
            ("config.json", {"bos_token_id": by_text["<|endoftext|>"], "eos_token_id": by_text["<|im_end|>"]}),
        ):
            path = checkpoint / file_name
            path.write_text(json.dumps({**json.loads(path.read_text()), **changes}), encoding="utf-8")
    write_gguf(checkpoint, tmp_path / "m.gguf", "F16", vocab_only=True)
    tokenizer = load_tokenizer(checkpoint)
    expected = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    runtime = GgufRuntime(tmp_path / "m.gguf", threads=1)
    try:
        assert runtime.prefix_token == expected
        keys = gguf.GGUFReader(tmp_path / "m.gguf").fields
        assert "compact.prefix_token_id" not in keys  # the keys of the format are enough for these
    finally:
        runtime.close()
