"""Multimodal Gemma 3: the language model that is taken computes what the whole model computes on text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma3ForConditionalGeneration

from compact.base.cache import Cache
from compact.base.errors import CompactEdgeError, RemoteCodeRefusedError, UnsupportedArchitectureError
from compact.sources.model_source import open_source
from tests.compact.multimodal_models import TEXT, write_multimodal
from tests.hub_standin import running_hub
from tests.small_builds import ROOT, command


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As Transformers saves it, its tokenizer beside it."""
    return write_multimodal(tmp_path_factory.mktemp("multimodal") / "gemma-3-tiny")


def renamed(model: Path, out: Path) -> Path:
    """The same weights by the names they have in memory, config.json as sparse as the published ones."""
    out.mkdir()
    weights = load_file(model / "model.safetensors")
    names = {name: name.replace("language_model.model.", "model.language_model.") for name in weights}
    for old in names:
        if old.startswith(("vision_tower.", "multi_modal_projector.")):
            names[old] = f"model.{old}"
    assert any(old != new for old, new in names.items())
    save_file({names[name]: tensor for name, tensor in weights.items()}, out / "model.safetensors", {"format": "pt"})
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    text = {key: TEXT[key] for key in TEXT if key != "rope_parameters"}
    text |= {"model_type": "gemma3_text", "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    config = {**config, "text_config": text, "eos_token_id": [1, 2]}
    config.pop("tie_word_embeddings", None)
    (out / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (out / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
    return out


@pytest.mark.parametrize("spelling", ["as saved", "as in memory"])
def test_the_language_model_computes_the_same(model: Path, tmp_path: Path, spelling: str) -> None:
    directory = model if spelling == "as saved" else renamed(model, tmp_path / "gemma-3-tiny")
    source = open_source(str(directory), Cache(tmp_path / "cache", [], []))
    assert source.family.architecture == "Gemma3ForCausalLM"
    assert source.name == "gemma-3-tiny"
    assert source.note is not None
    assert "only its language model" in source.note
    ids = torch.arange(60)[None] * 7 % 400
    whole: Any = Gemma3ForConditionalGeneration.from_pretrained(model, dtype=torch.float32).eval()
    taken = AutoModelForCausalLM.from_pretrained(source.directory, dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.equal(taken(ids).logits, whole(input_ids=ids).logits)
    if spelling == "as in memory":
        assert source.config["eos_token_id"] == [1, 2]
    else:
        assert (source.directory / "LICENSE").read_text(encoding="utf-8") == "terms"
    assert "vision_config" not in source.config


def test_an_unknown_part_is_refused(model: Path, tmp_path: Path) -> None:
    out = renamed(model, tmp_path / "m")
    weights = load_file(out / "model.safetensors")
    save_file({**weights, "decoder_tower.w": torch.zeros(2)}, out / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedArchitectureError, match=r"decoder_tower\.w"):
        open_source(str(out), Cache(tmp_path / "cache", [], []))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"auto_map": {"AutoConfig": "evil.py"}}, RemoteCodeRefusedError),
        ({"text_config": {"hidden_size": "a"}}, CompactEdgeError),
        ({"text_config": 3}, CompactEdgeError),
        ({"text_config": None}, CompactEdgeError),
        ({"model_type": "llama"}, CompactEdgeError),
        ({"model_type": 5}, CompactEdgeError),
    ],
)
def test_a_hostile_configuration_is_a_typed_error(
    model: Path, tmp_path: Path, change: dict[str, Any], error: type[Exception]
) -> None:
    out = renamed(model, tmp_path / "m")
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    (out / "config.json").write_text(json.dumps({**config, **change}), encoding="utf-8")
    with pytest.raises(error):
        open_source(str(out), Cache(tmp_path / "cache", [], []))


_OPEN = """
import sys
from compact.base.cache import open_cache
from compact.sources.model_source import open_source
from compact_edge.terminal.console import Console
with open_cache() as cache:
    print(open_source(sys.argv[1], cache, Console()).family.architecture)
"""


@pytest.mark.slow
def test_from_the_hub(model: Path, tmp_path: Path) -> None:
    """The files' hashes are checked against the Hub's before the language model is taken of them."""
    with running_hub() as hub:
        hub.add_folder("maker/gemma-3-tiny", model)
        environment = hub.environment(
            tmp_path / "home", COMPACT_EDGE_CACHE=str(tmp_path / "cache"), PYTHONPATH=str(ROOT)
        )

        def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
            return subprocess.run(arguments, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)

        described = run(command("inspect", "maker/gemma-3-tiny", "--json"))
        fetched = hub.fetched()
        opened = run([sys.executable, "-c", _OPEN, "maker/gemma-3-tiny"])
    for done in (described, opened):
        assert done.returncode == 0, done.stderr
        assert "only its language model is taken" in done.stderr
    assert fetched == ["config.json"]  # its sizes are in there
    assert json.loads(described.stdout)["architecture"] == opened.stdout.strip() == "Gemma3ForCausalLM"
