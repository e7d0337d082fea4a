"""A training that is killed: nothing is written, and the same command goes on where its last state was."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from compact_edge.cli import main as cli
from tests.small_builds import ROOT, Workshop, command

pytestmark = pytest.mark.slow

_PATIENCE = 120.0  # seconds; no measure of speed, only so that a hanging run fails the test


def test_a_killed_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = Workshop(tmp_path)
    out, log = tmp_path / "out", tmp_path / "log"
    arguments = [
        *("prune", str(shop.model), "--out", str(out), "--vocab-size", "300"),
        *("--calibration", str(shop.calibration), "--calibration-tokens", "512"),
        # Every weight of this model is random: a large rate finds something better, which is saved, at once.
        *("--recover", "distill", "--recover-tokens", "60000", "--learning-rate", "0.01"),
    ]
    with log.open("wb") as stream:
        process = subprocess.Popen(command(*arguments), cwd=ROOT, env=shop.environment(), stdout=stream, stderr=stream)
    try:
        end = time.monotonic() + _PATIENCE
        while len(re.findall(r"^recovery: [\d,]+ tokens, loss", log.read_text("utf-8"), re.MULTILINE)) < 2:
            assert process.poll() is None, log.read_text("utf-8")
            assert time.monotonic() < end, log.read_text("utf-8")
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not out.exists()
    shop.enter(monkeypatch)
    assert cli.run(arguments) == 0
    resumed = re.search(r"resumed at step \d+, ([\d,]+) tokens", capsys.readouterr().err)
    assert resumed and int(resumed[1].replace(",", "")) > 0
    assert cli.run(["verify", str(out)]) == 0
    assert list((shop.cache / "recovering").iterdir()) == []
