"""From a checkpoint to a finished GGUF through the cache: what is made again, and what is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from compact.base.cache import Cache
from compact.base.errors import UsageError
from compact.base.files import sha256_file
from exporters.gguf.artifact import (
    Export,
    GgufArtifact,
    checkpoint_id,
    fallback_note,
    lossless_type,
    make_artifact,
)
from exporters.gguf.type_choice import fitting_quant
from exporters.gguf_writer.metadata import GgufMetadata
from exporters.gguf_writer.write import write_gguf
from exporters.llamacpp.quant_types import QuantSummary
from tests.checkpoints import TEXTS, write_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("artifact") / "model")


def request(checkpoint: Path, **changes: Any) -> Export:
    export = Export(checkpoint, checkpoint_id(checkpoint), "Q8_0", "model", texts=TEXTS, texts_id="texts")
    return replace(export, **changes)


def test_the_artifact_is_the_writers_file_with_its_facts(tmp_path: Path, checkpoint: Path) -> None:
    artifact = make_artifact(request(checkpoint), Cache(tmp_path / "cache", [], []))
    write_gguf(checkpoint, tmp_path / "same.gguf", "Q8_0")
    assert artifact.path.name == "model-89K-Q8_0.gguf"
    assert artifact.path.read_bytes() == (tmp_path / "same.gguf").read_bytes()
    assert artifact.sha256 == sha256_file(artifact.path)
    assert artifact.size_bytes == artifact.path.stat().st_size
    assert artifact.n_params == 88_704
    assert artifact.embedding_type == "Q8_0"
    assert artifact.imatrix_id is None
    assert artifact.summary.bits_per_weight == pytest.approx(8.5, abs=0.15)


def test_an_equal_request_makes_nothing_again_and_every_change_does(tmp_path: Path, checkpoint: Path) -> None:
    cache = Cache(tmp_path / "cache", [], [])
    first = make_artifact(request(checkpoint), cache)
    assert (cache.hits, cache.misses) == ([], ["gguf"])
    assert make_artifact(request(checkpoint), cache) == first
    # Texts feed an importance matrix, which Q8_0 does not use.
    assert make_artifact(request(checkpoint, texts=(), texts_id=""), cache) == first
    assert (cache.hits, cache.misses) == (["gguf", "gguf"], ["gguf"])
    changes: list[dict[str, Any]] = [
        {"quant": "F16"},
        {"checkpoint_id": "another"},
        {"name": "other"},
        {"pre": "gpt-2"},
        {"metadata": GgufMetadata(name="named")},
        {"metadata": GgufMetadata(extra={"compact_edge.plan_id": "1"})},
    ]
    for count, change in enumerate(changes, 2):
        make_artifact(request(checkpoint, **change), cache)
        assert cache.misses == ["gguf"] * count, change


def test_an_entry_that_lost_bytes_is_made_again(tmp_path: Path, checkpoint: Path) -> None:
    cache = Cache(tmp_path / "cache", [], [])
    first = make_artifact(request(checkpoint), cache)
    content = first.path.read_bytes()
    first.path.write_bytes(content[:-100])
    assert make_artifact(request(checkpoint), cache) == first
    assert first.path.read_bytes() == content
    assert cache.misses == ["gguf", "gguf"]


def test_a_changed_type_keeps_the_importance_matrix(tmp_path: Path, checkpoint: Path) -> None:
    cache = Cache(tmp_path / "cache", [], [])
    first = make_artifact(request(checkpoint, quant="Q4_0"), cache)
    second = make_artifact(request(checkpoint, quant="IQ4_NL"), cache)
    assert first.imatrix_id is not None
    assert first.imatrix_id == second.imatrix_id
    assert sorted(cache.misses) == ["gguf", "gguf", "imatrix"]
    assert cache.hits == ["imatrix"]
    make_artifact(request(checkpoint, quant="Q4_0", texts=TEXTS[:2], texts_id="fewer"), cache)
    assert cache.misses[-2:] == ["imatrix", "gguf"]
    # The float file that the quantizer reads is gone: an entry holds the artifact alone.
    assert sorted(path.name for path in first.path.parent.iterdir()) == ["entry.json", first.path.name]


def test_the_embedding_has_the_type_asked_for(tmp_path: Path, checkpoint: Path) -> None:
    cache = Cache(tmp_path / "cache", [], [])
    artifact = make_artifact(request(checkpoint, quant="Q4_0", texts=(), embedding_quant="Q5_0"), cache)
    assert artifact.embedding_type == "Q5_0"
    assert artifact.imatrix_id is None
    with pytest.raises(UsageError, match="F16 files have a single type"):
        make_artifact(request(checkpoint, quant="F16", embedding_quant="Q4_0"), cache)
    mixed = make_artifact(request(checkpoint, quant="Q8_0", texts=(), embedding_quant="Q4_0"), cache)
    assert mixed.embedding_type == "Q4_0"
    assert mixed.size_bytes < make_artifact(request(checkpoint, quant="Q8_0"), cache).size_bytes
    with pytest.raises(UsageError, match="needs an importance matrix"):
        make_artifact(request(checkpoint, quant="IQ2_M", texts=()), cache)


def test_unknown_types_come_with_a_suggestion(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(UsageError) as caught:
        make_artifact(request(checkpoint, quant="Q4_KM"), Cache(tmp_path / "cache", [], []))
    assert caught.value.message == "quantization 'Q4_KM' is not known"
    assert caught.value.hint is not None
    assert "'Q4_K_M'" in caught.value.hint


def test_a_failed_export_leaves_no_entry(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(checkpoint: Path, target: Path, *_: Any, **__: Any) -> None:
        target.write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr("exporters.gguf.artifact.write_gguf", fails)
    cache = Cache(tmp_path / "cache", [], [])
    with pytest.raises(KeyboardInterrupt):
        make_artifact(request(checkpoint), cache)
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_a_type_that_fits_the_rows() -> None:
    assert fitting_quant("Q4_K_M", "IQ4_NL", (2048, 2048)) == "Q4_K_M"
    assert fitting_quant("Q4_K_M", "IQ4_NL", (576, 576)) == "IQ4_NL"
    assert fitting_quant("Q4_K_M", "IQ4_NL", (1024, 896)) == "IQ4_NL"
    assert fitting_quant("Q4_0", "Q4_0", (576,)) == "Q4_0"


def test_the_float_file_holds_the_checkpoint_exactly(tmp_path: Path, checkpoint: Path) -> None:
    assert lossless_type(checkpoint) == "BF16"
    assert lossless_type(write_checkpoint(tmp_path / "f16", dtype=torch.float16)) == "F16"
    assert lossless_type(write_checkpoint(tmp_path / "f32", dtype=torch.float32)) == "F32"


def test_a_fallback_is_said_only_where_it_weighs() -> None:
    def artifact(summary: QuantSummary) -> GgufArtifact:
        return GgufArtifact(Path("x"), "Q4_K_M", "", 0, 0, summary, None, "Q8_0")

    quiet = QuantSummary(4.9, 1000, {"a": ("Q4_K", "Q5_0")}, 0.04, None)
    assert fallback_note(artifact(quiet)) is None
    loud = QuantSummary(5.91, 1000, {"a": ("Q4_K", "Q5_0"), "b": ("Q6_K", "Q8_0")}, 0.9, "Q4_0")
    note = fallback_note(artifact(loud))
    assert note is not None
    assert "90%" in note
    assert "Q4_K -> Q5_0, Q6_K -> Q8_0" in note
    assert "5.91 bits per weight" in note
    assert "--quant Q4_0 fits" in note
    assert "\n" not in note


def test_a_real_fallback_is_noted(tmp_path: Path, checkpoint: Path) -> None:
    artifact = make_artifact(request(checkpoint, quant="Q4_K_M"), Cache(tmp_path / "cache", [], []))
    note = fallback_note(artifact)  # rows of 64 and 96 hold no block of 256
    assert note is not None
    assert note.startswith("Q4_K_M: ")


def test_a_checkpoints_id_follows_its_content(tmp_path: Path, checkpoint: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    assert checkpoint_id(copy) == checkpoint_id(checkpoint)
    (copy / "notes.txt").write_text("x")
    assert checkpoint_id(copy) == checkpoint_id(checkpoint)
    config = copy / "config.json"
    config.write_text(config.read_text(encoding="utf-8") + " ", encoding="utf-8")
    assert checkpoint_id(copy) != checkpoint_id(checkpoint)
