"""Artifacts as the bench finds and reads them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from compact.base.errors import CompactEdgeError, DamagedFileError, ModelNotFoundError, UnsafePathError, UsageError
from compact.base.files import sha256_file
from compact_edge.cli import main as cli
from exporters.gguf.split import split_gguf
from runtime_bench.bench_artifact import BenchArtifact, find_artifact, find_baseline, read_artifact
from tests.small_builds import Workshop


@pytest.fixture(scope="module")
def one(shop: Workshop) -> Path:
    """One build of GGUF alone, with its baseline."""
    out = shop.root / "one"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPACT_EDGE_CACHE", str(shop.cache))
        assert cli.run(shop.build(out, "--with-baseline")) == 0
    return out


def manifest(folder: Path) -> dict[str, dict[str, object]]:
    value: dict[str, dict[str, object]] = json.loads((folder / "manifest.json").read_text())
    return value


def test_a_builds_output_means_its_artifact_and_its_baseline(one: Path) -> None:
    path = find_artifact(one)
    assert path.parent == one / "gguf"
    baseline = find_baseline(path)
    assert baseline is not None
    assert baseline.parent == one / "baseline"
    assert find_baseline(baseline) is None


def test_of_both_formats_each_finds_its_own_baseline(both: Path) -> None:
    with pytest.raises(UsageError, match="both formats"):
        find_artifact(both)
    assert find_baseline(find_artifact(both / "onnx")) == both / "baseline-onnx"
    gguf = find_baseline(find_artifact(both / "gguf"))
    assert gguf is not None
    assert gguf.parent == both / "baseline-gguf"


@pytest.mark.parametrize("kind", ["gguf", "onnx"])
def test_what_an_artifact_says_of_itself_is_what_the_build_published(both: Path, kind: str) -> None:
    published = manifest(both / kind)
    pruned, baseline = (read_artifact(find_artifact(both / name)) for name in (kind, f"baseline-{kind}"))
    assert pruned.quant == published["artifact"]["quant"] == baseline.quant
    assert pruned.size_bytes == published["artifact"]["size_bytes"]
    assert pruned.bits_per_weight == pytest.approx(published["artifact"]["bits_per_weight"], abs=1e-4)
    for artifact, part in ((pruned, "after"), (baseline, "before")):
        figures = published[part]
        assert artifact.parameters == figures["parameters"]["total"]  # type: ignore[index]
        found = artifact.published_bits_per_byte()
        assert found is not None
        assert found[1] == figures["bits_per_byte"][artifact.quant]  # type: ignore[index]
    assert pruned.target == kind
    assert pruned.sha256 != baseline.sha256
    assert pruned.name != baseline.name


def test_every_file_that_the_device_needs_is_named_with_its_hash(both: Path) -> None:
    artifact = read_artifact(both / "onnx")
    assert {"model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json"} <= artifact.files.keys()
    assert not {"manifest.json", "plan.json", "README.md"} & artifact.files.keys()
    assert all(sha256_file(path) == digest for path, digest in artifact.files.values())
    assert set(artifact.weights) == {"model.onnx", "model.onnx.data"}


def test_a_split_gguf_is_all_its_parts(one: Path, tmp_path: Path) -> None:
    whole = read_artifact(find_artifact(one))
    split_gguf(whole.path, tmp_path, whole.size_bytes // 3)
    first = find_artifact(tmp_path)
    parts = read_artifact(first)
    assert len(parts.files) > 1
    assert parts.main == first.name
    assert parts.parameters == whole.parameters
    second = next(path for path in sorted(tmp_path.iterdir()) if "-00002-of-" in path.name)
    assert read_artifact(second) == parts
    second.unlink()
    with pytest.raises(ModelNotFoundError, match="its folder lacks"):
        read_artifact(first)


def test_a_bare_gguf_needs_no_manifest(one: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(find_artifact(one), tmp_path / "model.gguf"))
    artifact = read_artifact(path)
    assert (artifact.manifest, artifact.target, artifact.published_bits_per_byte()) == (None, None, None)
    assert artifact.quant == "Q8_0"
    assert find_baseline(path) is None


def test_a_file_that_is_not_what_its_sums_say_is_refused(one: Path, tmp_path: Path) -> None:
    folder = tmp_path / "gguf"
    shutil.copytree(one / "gguf", folder)
    path = find_artifact(folder)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match="sha256 differs"):
        read_artifact(path)


def test_an_onnx_folder_that_names_files_elsewhere_is_refused(both: Path, tmp_path: Path) -> None:
    folder = tmp_path / "onnx"
    shutil.copytree(both / "onnx", folder)
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["decoder"]["filename"] = "../model.onnx"
    (folder / "genai_config.json").write_text(json.dumps(config))
    with pytest.raises(UnsafePathError):
        read_artifact(folder)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\xff" * 64])
def test_a_broken_gguf_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(CompactEdgeError) as caught:
        read_artifact(path)
    assert "\n" not in caught.value.message


def test_places_without_an_artifact(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(ModelNotFoundError):
            find_artifact(path)
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(UsageError, match="2 GGUF files"):
        find_artifact(tmp_path)


def test_odd_values_in_a_manifest_are_not_believed(one: Path, tmp_path: Path) -> None:
    folder = tmp_path / "gguf"
    shutil.copytree(one / "gguf", folder)
    (folder / "SHA256SUMS").unlink()
    odd = {"schema": "compact-edge/manifest/1", "target": 7, "after": "x", "before": {"size_bytes": True}, "model": []}
    (folder / "manifest.json").write_text(json.dumps(odd))
    artifact: BenchArtifact = read_artifact(find_artifact(folder))
    assert (artifact.target, artifact.published_bits_per_byte()) == (None, None)
