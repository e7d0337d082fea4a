"""A disk that fills up in the middle of a write: exit code 74, one line, and nothing half-written."""

from __future__ import annotations

import errno
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from compact_edge.cli import main as cli
from tests.small_builds import Workshop, leftovers, tree


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("disk-full"))


@contextmanager
def largest_file(limit: int) -> Iterator[None]:
    """A limit on the size of every file stands for the full disk: the write that crosses it fails with EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.MonkeyPatch.context() as patch:
        # Python keeps bytecode files that such a limit cuts, and later imports of them fail.
        patch.setattr(sys, "dont_write_bytecode", True)
        patch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def error_lines(stderr: str) -> list[str]:
    assert "Traceback" not in stderr
    return [line for line in stderr.splitlines() if line.startswith(("error:", "hint:"))]


# Sizes between those of the files: scores 5 KB, pruned weights 142 KB, float32 GGUF 300 KB.
@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on file sizes here")
@pytest.mark.parametrize("limit", [2_000, 60_000, 200_000])
def test_a_write_that_fails_ends_the_build(
    shop: Workshop, limit: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.enter(monkeypatch)
    out = shop.root / f"out-{limit}"
    with largest_file(limit):
        assert cli.run(shop.build(out, "--no-baseline", quant="F32")) == 74
    lines = error_lines(capsys.readouterr().err)
    assert len(lines) in (1, 2)
    assert lines[0].startswith("error: ")
    assert not out.exists()
    assert leftovers(shop.root) == []


def test_after_the_disk_has_room_again_the_build_succeeds(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.enter(monkeypatch)
    out = shop.root / "roomy"
    assert cli.run(shop.build(out, "--no-baseline", quant="F32")) == 0
    names = {path.name for path in (out / "gguf").iterdir()}
    assert len(names) == 5


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# The place where the writing of each stage meets the full disk.
PLACES: dict[str, str] = {
    "the checkpoint": "compact.pruning.apply.write_checkpoint",
    "the artifact": "exporters.gguf_writer.write._write_data",
    "the copy to the output": "exporters.gguf.placing.copy_hashed",
    "the manifest": "compact_edge.building.publication.write_json",
    "the checksums": "compact_edge.building.publication.write_sums",
    "a value in the cache": "compact_edge.building.variant.write_json",
}


@pytest.mark.parametrize("name", PLACES)
def test_a_full_disk_at_every_stage(
    shop: Workshop, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMPACT_EDGE_CACHE", str(shop.root / "caches" / name))
    monkeypatch.setattr(PLACES[name], full)
    out = shop.root / "full"
    assert cli.run(shop.build(out, "--no-baseline")) == 74
    lines = error_lines(capsys.readouterr().err)
    assert "the disk is full" in lines[0]
    assert lines[1].startswith("hint: free some space")
    assert not out.exists()
    assert leftovers(shop.root) == []


def test_an_earlier_output_survives_a_full_disk(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMPACT_EDGE_CACHE", str(shop.root / "cache-full"))
    out = shop.root / "earlier"
    assert cli.run(shop.build(out, "--no-baseline")) == 0
    before = tree(out)
    monkeypatch.setattr("compact_edge.building.publication.write_sums", full)
    assert cli.run(shop.build(out, "--no-baseline", "--force")) == 74
    assert tree(out) == before
    assert leftovers(shop.root) == []


def unwritable(directory: Path) -> Callable[[], None]:
    directory.mkdir()
    directory.chmod(0o500)
    return lambda: directory.chmod(0o700)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_directory_that_cannot_be_written(shop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    restore = unwritable(shop.root / "locked")
    try:
        assert cli.run(shop.build(shop.root / "locked" / "out", "--no-baseline")) == 74
    finally:
        restore()
    assert error_lines(capsys.readouterr().err)[0].startswith("error: ")
