"""A disk that fills up in the middle of a write: exit code 74, one line, and nothing half-written."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compact_edge import cli
from tests.small_builds import ROOT, Workshop, leftovers, tree

# A limit on the size of every file stands for the full disk: the write that crosses it fails with EFBIG.
_LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
from compact_edge.cli import main
sys.argv = ["compact-edge", *sys.argv[2:]]
main()
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("disk-full"))


def limited(shop: Workshop, limit: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _LIMITED, str(limit), *arguments],
        cwd=ROOT,
        env=shop.environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def error_lines(stderr: str) -> list[str]:
    assert "Traceback" not in stderr
    return [line for line in stderr.splitlines() if line.startswith(("error:", "hint:"))]


# Sizes between those of the files: scores 5 KB, pruned weights 142 KB, float32 GGUF 300 KB.
@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on file sizes here")
@pytest.mark.parametrize("limit", [2_000, 60_000, 200_000])
def test_a_write_that_fails_ends_the_build(shop: Workshop, limit: int) -> None:
    out = shop.root / f"out-{limit}"
    done = limited(shop, limit, *shop.build(out, "--no-baseline", quant="F32"))
    assert done.returncode == 74, done.stderr
    lines = error_lines(done.stderr)
    assert len(lines) in (1, 2)
    assert lines[0].startswith("error: ")
    assert not out.exists()
    assert leftovers(shop.root) == []


def test_after_the_disk_has_room_again_the_build_succeeds(shop: Workshop) -> None:
    out = shop.root / "roomy"
    done = limited(shop, 10**9, *shop.build(out, "--no-baseline", quant="F32"))
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (out / "gguf").iterdir()}
    assert len(names) == 5


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# The place where the writing of each stage meets the full disk.
PLACES: dict[str, str] = {
    "the checkpoint": "compact.apply.write_checkpoint",
    "the artifact": "exporters.gguf._write_data",
    "the copy to the output": "exporters.gguf_placing.copy_hashed",
    "the manifest": "compact_edge.publication.write_json",
    "the checksums": "compact_edge.publication.write_sums",
    "a value in the cache": "compact_edge.variant.write_json",
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
    monkeypatch.setattr("compact_edge.publication.write_sums", full)
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
