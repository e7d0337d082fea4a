"""A model known by its config.json alone: where it may lie, and what is refused."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from compact.base.errors import (
    CompactEdgeError,
    DamagedFileError,
    ModelNotFoundError,
    QuantizedCheckpointError,
    RemoteCodeRefusedError,
)
from compact.sources.config_source import open_config
from tests.checkpoints import model_config
from tests.hub_standin import running_hub
from tests.small_builds import ROOT, command


def write_config(path: Path, **changes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**model_config("llama", 500), **changes}), encoding="utf-8")
    return path


def test_a_directory_and_a_file(tmp_path: Path) -> None:
    path = write_config(tmp_path / "some-model" / "config.json")
    for named in (path.parent, path):
        found = open_config(str(named))
        assert found is not None
        assert (found.name, found.family.architecture) == ("some-model", "LlamaForCausalLM")
        assert found.config["vocab_size"] == 500
    other = open_config(str(write_config(tmp_path / "other.json")))
    assert other is not None and other.name == "other"


def test_weights_are_for_the_checkpoint_reader(tmp_path: Path) -> None:
    path = write_config(tmp_path / "m" / "config.json")
    (path.parent / "model.safetensors").write_bytes(b"")
    assert open_config(str(path.parent)) is None
    (tmp_path / "m.gguf").write_bytes(b"")
    assert open_config(str(tmp_path / "m.gguf")) is None
    assert open_config("tiny") is None


def test_a_row_of_the_table() -> None:
    found = open_config("Gemma-3-270M")
    assert found is not None
    assert (found.hub_id, found.config["sliding_window"]) == ("google/gemma-3-270m", 512)
    with pytest.raises(ModelNotFoundError) as caught:
        open_config("gemma-3-270")
    assert "gemma-3-270m" in (caught.value.hint or "")
    with pytest.raises(ModelNotFoundError) as caught:
        open_config("zzz")
    assert "inspect --list" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"auto_map": {"AutoConfig": "evil.py"}}, RemoteCodeRefusedError),
        ({"quantization_config": {"quant_method": "gptq"}}, QuantizedCheckpointError),
        ({"hidden_size": "big"}, DamagedFileError),
        ({"num_hidden_layers": 10**9}, DamagedFileError),
        ({"num_hidden_layers": True}, DamagedFileError),
        ({"vocab_size": -1}, DamagedFileError),
        ({"vocab_size": 10**12}, DamagedFileError),
        ({"intermediate_size": 10**400}, DamagedFileError),
        ({"architectures": None}, CompactEdgeError),
    ],
)
def test_a_hostile_configuration_is_a_typed_error(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception]
) -> None:
    path = write_config(tmp_path / "config.json", **changes)
    with pytest.raises(error):
        open_config(str(path))


def test_a_multimodal_configuration(tmp_path: Path) -> None:
    """Only the language model counts, with what its file leaves to Transformers' defaults."""
    text = {"model_type": "gemma3_text", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 300}
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": text}
    for path in (tmp_path / "m" / "config.json", tmp_path / "gemma.json"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(config), encoding="utf-8")
        found = open_config(str(path))
        assert found is not None
        assert found.family.architecture == "Gemma3ForCausalLM"
        assert found.config["hidden_size"] == 64 and found.config["tie_word_embeddings"] is True
        assert "only its language model" in (found.note or "")


def test_of_the_hub_only_the_configuration_is_fetched(tmp_path: Path) -> None:
    config = json.dumps(model_config("llama", 500)).encode()
    with running_hub() as hub:
        repository = hub.add("maker/model", {"config.json": config, "model.safetensors": b"\0" * 1000})
        hub.add("maker/empty", {"README.md": b"nothing"})
        hub.add("maker/adapter", {"adapter_config.json": b'{"base_model_name_or_path": "maker/Base"}'})
        environment = hub.environment(tmp_path / "home", PYTHONPATH=str(ROOT), COMPACT_EDGE_CACHE=str(tmp_path / "c"))

        def inspect(name: str, **changes: str) -> subprocess.CompletedProcess[str]:
            line = command("inspect", name, "--json")
            return subprocess.run(
                line, env={**environment, **changes}, cwd=tmp_path, capture_output=True, text=True, check=False
            )

        done = inspect("maker/model")
        assert done.returncode == 0, done.stderr
        assert hub.fetched() == ["config.json"]
        assert repository.commit in done.stderr
        missing = inspect("maker/empty")
        adapter = inspect("maker/adapter")
        offline = inspect("maker/model", HF_HUB_OFFLINE="1")
    result = json.loads(done.stdout)
    assert result["hub_id"] == "maker/model" and result["counted_from"] == "config.json"
    assert result["parameters"]["vocabulary"] == 500 * 64
    assert missing.returncode == 65 and "no config.json" in missing.stderr
    assert adapter.returncode == 65 and "an adapter for maker/Base" in adapter.stderr
    assert offline.returncode == 0 and json.loads(offline.stdout) == result
