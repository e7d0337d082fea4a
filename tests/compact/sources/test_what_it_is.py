"""Folders and files that are not a checkpoint: the refusal says what they are and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from compact.base.cache import Cache
from compact.base.errors import DamagedFileError, DataError, ModelNotFoundError, PickleRefusedError
from compact.sources.config_source import open_config
from compact.sources.model_source import open_source
from tests.checkpoints import write_checkpoint
from tests.compact.sources.unusual_folders import refusal, save

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
PAGE = "<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"
SHARD, INDEX = "model-00002-of-00002.safetensors", "model.safetensors.index.json"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "m")


def bare(model: Path, *names: str) -> None:
    """Remove the weights and these files."""
    for name in ("model.safetensors", *names):
        (model / name).unlink()


def adapter(model: Path) -> None:
    text = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "Qwen/Qwen2.5-0.5B", "r": 4})
    (model / "adapter_config.json").write_text(text)
    save({"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(4, 64)},
         model / "adapter_model.safetensors")  # fmt: skip


@pytest.mark.parametrize("with_config", [True, False])
def test_an_adapter(model: Path, tmp_path: Path, with_config: bool) -> None:
    adapter(model)
    bare(model, *(() if with_config else ("config.json",)))
    refusal(model, tmp_path, DataError, "an adapter (LORA) for Qwen/Qwen2.5-0.5B", "not a model", "merge_and_unload")


def test_an_adapter_beside_a_model(model: Path, tmp_path: Path) -> None:
    """Transformers applies the adapter only if PEFT is installed. So the user must decide."""
    adapter(model)
    refusal(model, tmp_path, DataError, "a model and an adapter", "Qwen/Qwen2.5-0.5B", "remove adapter_config.json")
    (model / "adapter_config.json").write_text("[")
    refusal(model, tmp_path, DataError, "an adapter for a model that it does not name")


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", INDEX, SHARD]
)
def test_a_pointer_of_git_lfs(tmp_path: Path, name: str) -> None:
    model = write_checkpoint(tmp_path / "m", shards=2)
    (model / name).write_text(LFS)
    refusal(model, tmp_path, DamagedFileError, f"{name}: a Git LFS pointer", "git lfs pull")
    if name == "config.json":
        with pytest.raises(DamagedFileError, match="a Git LFS pointer"):
            open_config(str(model / name))


def test_a_pointer_that_is_not_needed(model: Path, tmp_path: Path) -> None:
    (model / "model.fp16.safetensors").write_text(LFS)
    assert open_source(str(model), Cache(tmp_path / "cache", [], [])).note is None


@pytest.mark.parametrize(
    ("target", "what", "step"),
    [
        (".git/annex/objects/xx/yy/SHA256E-s1--aa/SHA256E-s1--aa", "a git-annex pointer", "git annex get"),
        ("../../blobs/0123", "a link to a file that is not in the Hub cache", "hf download"),
        ("/somewhere/else", "a broken link", "replace the link by the file"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_link_to_nothing(model: Path, tmp_path: Path, name: str, target: str, what: str, step: str) -> None:
    (model / name).unlink()
    (model / name).symlink_to(target)
    refusal(model, tmp_path, DamagedFileError, f"{name}: {what}", step)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (PAGE, "a web page"),
        ("Entry not found", "an error message of a server ('Entry not found')"),
        ("", "the file is empty"),
        ("/annex/objects/SHA256E-s1--aa.json\n", "a git-annex pointer"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_something_else_in_the_file(model: Path, tmp_path: Path, name: str, content: str, what: str) -> None:
    (model / name).write_text(content)
    refusal(model, tmp_path, DamagedFileError, f"{name}: {what}")


def test_other_weights_under_the_name(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").write_bytes(b"PK\x03\x04" + bytes(100))
    refusal(model, tmp_path, PickleRefusedError, "model.safetensors: a PyTorch pickle")
    (model / "model.safetensors").write_bytes(b"GGUF" + bytes(100))
    refusal(model, tmp_path, DamagedFileError, "model.safetensors: a GGUF file", "rename it")


def test_weights_that_are_cut_off(model: Path, tmp_path: Path) -> None:
    data = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(data[: len(data) // 2])
    refusal(model, tmp_path, DamagedFileError, "model.safetensors", "download it again")


def onnx(model: Path) -> None:
    bare(model, "config.json")
    (model / "model.onnx").write_bytes(b"x")


def onnx_with_config(model: Path) -> None:
    bare(model)
    (model / "onnx").mkdir()
    (model / "onnx" / "model.onnx").write_bytes(b"x")


def meta(model: Path) -> None:
    bare(model, "config.json")
    (model / "consolidated.00.pth").write_bytes(b"PK")
    (model / "params.json").write_text("{}")


def mistral(model: Path) -> None:
    (model / "model.safetensors").rename(model / "consolidated.safetensors")
    (model / "config.json").rename(model / "params.json")


def training(model: Path) -> None:
    for step in (500, 1000):
        shutil.copytree(model, model.parent / "copy")
        (model.parent / "copy").rename(model.parent / f"checkpoint-{step}")
    bare(model, "config.json")
    for step in (500, 1000):
        (model.parent / f"checkpoint-{step}").rename(model / f"checkpoint-{step}")


def hub_cache(model: Path) -> None:
    commit = model / "snapshots" / ("a" * 40)
    commit.mkdir(parents=True)
    for path in list(model.iterdir()):
        if path.is_file():
            path.rename(commit / path.name)


def inside(model: Path) -> None:
    (model / "final").mkdir()
    for path in list(model.iterdir()):
        if path.is_file():
            path.rename(model / "final" / path.name)


def deepspeed(model: Path) -> None:
    bare(model)
    (model / "zero_to_fp32.py").write_text("")
    (model / "global_step10").mkdir()


def tensorflow(model: Path) -> None:
    bare(model)
    (model / "tf_model.h5").write_bytes(b"x")


def pickled(model: Path) -> None:
    bare(model)
    (model / "pytorch_model.bin").write_bytes(b"x")


def state_alone(model: Path) -> None:
    bare(model)
    for name in ("optimizer.pt", "rng_state.pth", "training_args.bin"):
        (model / name).write_bytes(b"x")


def pickled_alone(model: Path) -> None:
    pickled(model)
    (model / "config.json").unlink()


def dvc(model: Path) -> None:
    bare(model)
    (model / "model.safetensors.dvc").write_text("outs: []")


def diffusion(model: Path) -> None:
    bare(model, "config.json")
    (model / "model_index.json").write_text("{}")


def weights_alone(model: Path) -> None:
    (model / "config.json").unlink()


@pytest.mark.parametrize(
    ("change", "kind", "parts"),
    [
        (onnx, DataError, ("no config.json", "an ONNX model (model.onnx)", "that it was made from")),
        (onnx_with_config, DataError, ("no model.safetensors", "an ONNX model", "that it was made from")),
        (meta, PickleRefusedError, ("original format (consolidated.00.pth", "Hugging Face version")),
        (mistral, DataError, ("original format (consolidated.safetensors", "Hugging Face version")),
        (training, DataError, ("the output of a training run", "m/checkpoint-1000")),
        (hub_cache, DataError, ("Hub cache", f"snapshots/{'a' * 40}")),
        (inside, ModelNotFoundError, ("it has subfolders with one (final)", "m/final")),
        (deepspeed, DataError, ("distributed training run", "zero_to_fp32.py")),
        (tensorflow, DataError, ("TensorFlow", "that it was made from")),
        (pickled, PickleRefusedError, ("only pickled weights (pytorch_model.bin)", "safetensors")),
        (pickled_alone, PickleRefusedError, ("no config.json", "pickled weights (pytorch_model.bin)")),
        (state_alone, DamagedFileError, ("no model.safetensors and no", "download the model again")),
        (dvc, DamagedFileError, ("model.safetensors.dvc", "dvc pull")),
        (diffusion, DataError, ("diffusion pipeline", "causal language model")),
        (weights_alone, ModelNotFoundError, ("no config.json", "only weights (model.safetensors)")),
        (bare, DamagedFileError, ("no model.safetensors and no", "download the model again")),
    ],
)
def test_a_folder_says_what_it_is(
    model: Path, tmp_path: Path, change: Callable[[Path], None], kind: type[DataError], parts: tuple[str, ...]
) -> None:
    change(model)
    refusal(model, tmp_path, kind, *parts)
