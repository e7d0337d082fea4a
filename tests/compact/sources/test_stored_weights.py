"""Which safetensors files of a folder are the model: as Transformers chooses, or the only possible reading."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from compact.base.errors import DamagedFileError, PickleRefusedError
from tests.checkpoints import write_checkpoint
from tests.compact.multimodal_models import write_multimodal
from tests.compact.sources.unusual_folders import change_config, change_weights, logits, opened, refusal, save

INDEX = "model.safetensors.index.json"


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "plain")


def change_index(model: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    index = json.loads((model / INDEX).read_text(encoding="utf-8"))
    (model / INDEX).write_text(json.dumps(change(index)), encoding="utf-8")


def no_index(model: Path) -> None:
    (model / INDEX).unlink()


def other_names(model: Path) -> None:
    no_index(model)
    for number, file in enumerate(sorted(model.glob("*.safetensors"))):
        file.rename(model / f"part{number}.safetensors")


def one_file_of_a_variant(model: Path) -> None:
    weights = {}
    for file in model.glob("*.safetensors"):
        weights |= load_file(file)
        file.unlink()
    no_index(model)
    save(weights, model / "model.fp16.safetensors")


def index_of_a_variant(model: Path) -> None:
    (model / INDEX).rename(model / "model.safetensors.index.fp16.json")


def no_metadata(model: Path) -> None:
    change_index(model, lambda index: {"weight_map": index["weight_map"]})


def makers_format_beside(model: Path) -> None:
    no_index(model)
    weights = load_file(model / "model-00001-of-00002.safetensors")
    save({name: tensor + 1 for name, tensor in weights.items()}, model / "consolidated.safetensors")


@pytest.mark.parametrize(
    "change",
    [no_index, other_names, one_file_of_a_variant, index_of_a_variant, no_metadata, makers_format_beside],
)
def test_one_possible_reading(plain: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    """Transformers finds no weights here. Only one reading is possible, and a note says which."""
    model = write_checkpoint(tmp_path / "m", shards=2)
    change(model)
    with pytest.raises((OSError, KeyError)):
        logits(model)
    source = opened(model, tmp_path)
    assert torch.equal(logits(source.directory), logits(plain))
    assert source.note is not None
    assert any(word in source.note for word in ("shards", "the weights are", "index"))


def test_the_id_follows_the_content(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m", shards=2)
    no_index(model)
    first = opened(model, tmp_path)
    shutil.copytree(model, tmp_path / "elsewhere")
    assert opened(tmp_path / "elsewhere", tmp_path).id == first.id
    file = "model-00001-of-00002.safetensors"
    change_weights(model, lambda weights: {name: tensor + 1 for name, tensor in weights.items()}, file)
    assert opened(model, tmp_path).id != first.id


def test_an_index_that_names_the_wrong_shards(tmp_path: Path) -> None:
    """Transformers reads all tensors of all shards, wherever the index says they are."""
    model = write_checkpoint(tmp_path / "m", shards=2)
    files = sorted(file.name for file in model.glob("*.safetensors"))
    swapped = dict(zip(files, reversed(files), strict=True))
    change_index(model, lambda i: {**i, "weight_map": {name: swapped[file] for name, file in i["weight_map"].items()}})
    assert torch.equal(logits(opened(model, tmp_path).directory), logits(model))


def test_config_json_chooses_the_file(plain: Path, tmp_path: Path) -> None:
    """`transformers_weights` comes before `model.safetensors`."""
    weights = load_file(plain / "model.safetensors")
    save({**weights, "model.norm.weight": weights["model.norm.weight"] + 1}, plain / "best.safetensors")
    before = logits(plain)
    change_config(plain, transformers_weights="best.safetensors")
    source = opened(plain, tmp_path)
    assert "transformers_weights" not in source.config
    assert torch.equal(logits(source.directory), logits(plain))
    assert not torch.equal(logits(source.directory), before)
    change_config(plain, transformers_weights="lost.safetensors")
    refusal(plain, tmp_path, DamagedFileError, "lost.safetensors", "transformers_weights", "remove")


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m", shards=2)
    first, second = sorted(model.glob("*.safetensors"))
    name, tensor = next(iter(load_file(second).items()))
    change_weights(model, lambda weights: {**weights, name: tensor}, first.name)
    assert torch.equal(logits(opened(model, tmp_path).directory), logits(model))
    change_weights(model, lambda weights: {**weights, name: tensor + 1}, first.name)
    refusal(model, tmp_path, DamagedFileError, first.name, second.name, name, "different values")


def test_several_readings_are_refused(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m")
    shutil.copyfile(model / "model.safetensors", model / "model.bf16.safetensors")
    (model / "model.safetensors").rename(model / "model.fp16.safetensors")
    refusal(model, tmp_path, DamagedFileError, "model.bf16.safetensors, model.fp16.safetensors", "rename the file")


def test_shards_that_are_missing(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m", shards=3)
    (model / "model-00002-of-00003.safetensors").rename(tmp_path / "aside")
    refusal(model, tmp_path, DamagedFileError, "model-00002-of-00003.safetensors: named by", "download")
    no_index(model)
    refusal(model, tmp_path, DamagedFileError, "model-00002-of-00003.safetensors: missing", "download")


def test_a_shard_that_the_index_does_not_name(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m", shards=3)
    last = "model-00003-of-00003.safetensors"
    change_index(model, lambda i: {**i, "weight_map": {n: f for n, f in i["weight_map"].items() if f != last}})
    refusal(model, tmp_path, DamagedFileError, last, f"remove {INDEX}")
    no_index(model)
    assert opened(model, tmp_path).n_params == opened(write_checkpoint(tmp_path / "whole"), tmp_path).n_params


def test_a_part_named_like_the_whole(tmp_path: Path) -> None:
    """Transformers reads `model.safetensors` alone, and would fill the rest with random values."""
    model = write_checkpoint(tmp_path / "m", shards=2)
    shutil.copyfile(model / "model-00001-of-00002.safetensors", model / "model.safetensors")
    refusal(model, tmp_path, DamagedFileError, "model.safetensors: tensor", "is in model-00002", "remove model.safet")


def test_an_index_of_pickles_and_a_damaged_one(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m", shards=2)
    change_index(model, lambda index: {**index, "weight_map": {"a": "pytorch_model.bin"}})
    refusal(model, tmp_path, PickleRefusedError, INDEX, "pytorch_model.bin")
    (model / INDEX).write_text("{")
    refusal(model, tmp_path, DamagedFileError, INDEX, "download the index again")


def test_a_distributed_checkpoint(plain: Path, tmp_path: Path) -> None:
    """Transformers reads its shards before `model.safetensors`."""
    shutil.copyfile(plain / "model.safetensors", plain / "shard-00001-model-00001-of-00001.safetensors")
    refusal(plain, tmp_path, DamagedFileError, "shard-00001-model", "distributed checkpoint")


def test_a_multimodal_model_in_shards_without_an_index(tmp_path: Path) -> None:
    model = write_multimodal(tmp_path / "m")
    expected = logits(opened(model, tmp_path).directory)
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    for number in (0, 1):
        save({name: weights[name] for name in list(weights)[number::2]}, model / f"part{number}.safetensors")
    assert torch.equal(logits(opened(model, tmp_path).directory), expected)
