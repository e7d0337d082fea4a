"""A release in one command: equal to its cells made apart, resumed after a kill, whole where a cell fails."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from compact_edge.cli import main as cli
from tests.compact_edge.small_release import CELLS, FOLDER, Factory
from tests.small_builds import ROOT, command, leftovers, run_child, tree

_PATIENCE = 300.0  # seconds; no measure of speed, only so that a hanging run fails the test


@pytest.mark.slow
def test_a_killed_release_goes_on_and_equals_the_gathered_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    factory = Factory(tmp_path / "work")
    out = tmp_path / "release"
    environment = factory.shop.environment()
    line = command("release", str(factory.toml), "--out", str(out), "--threads", "1", "--json")
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        running = subprocess.Popen(line, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=stderr)
        try:
            end = time.monotonic() + _PATIENCE
            while f"{CELLS[1]}: started" not in log.read_text("utf-8"):
                assert running.poll() is None, log.read_text("utf-8")
                assert time.monotonic() < end, log.read_text("utf-8")
                time.sleep(0.02)
            running.send_signal(signal.SIGKILL)
        finally:
            running.kill()
            running.wait()
    assert not out.exists()
    finished = {path.parent.name for path in (factory.shop.cache / "release-cell").glob("*/cell.json")}
    again = run_child(line, environment)
    # A budget of 1 MiB, and a file that is larger: the others are there.
    assert again.returncode == 3, again.stderr
    assert again.stderr.splitlines()[-2] == f"error: 1 of 3 failed: {CELLS[2]}"
    assert finished <= {path.parent.name for path in (factory.shop.cache / "release-cell").glob("*/cell.json")}
    assert f"{CELLS[0]}: started" not in again.stderr
    assert "storage budget of target pocket" in again.stdout
    assert {path.name for path in (out / FOLDER).glob("*.gguf")} == {
        f"Small-compact-0.2-{quant}.gguf" for quant in ("Q8_0", "Q4_0")
    } | {"imatrix.gguf"}
    assert leftovers(tmp_path) == []
    # The same cells, made one by one in another cache.
    monkeypatch.setattr(factory.shop, "cache", tmp_path / "other-cache")
    factory.make()
    apart = tmp_path / "apart"
    assert cli.run(["gather", str(factory.cells), "--out", str(apart)]) == 3
    assert tree(apart) == tree(out)
    capsys.readouterr()
