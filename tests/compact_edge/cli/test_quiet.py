"""Only our own lines reach the terminal: the libraries underneath are silenced, and kept off the network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from compact_edge.cli.library_env import quiet_libraries
from tests.small_builds import ROOT, Workshop, command, run_child

_OURS = ("calibrating: ", "measuring sizes: ", "pruning: ")


@pytest.mark.slow
def test_a_command_writes_only_its_own_lines(tmp_path: Path) -> None:
    shop = Workshop(tmp_path)
    prune = ["prune", str(shop.model), "--calibration", str(shop.calibration), "--calibration-tokens", "512"]
    environment = {key: value for key, value in shop.environment().items() if not key.startswith(("HF_", "TOKENIZERS"))}
    done = run_child(command(*prune, "--out", str(tmp_path / "out")), environment)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if not line.startswith(_OURS)] == []
    assert "\r" not in done.stderr


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM", "TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    quiet_libraries()
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "info"
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"


def test_silencing_imports_nothing_heavy() -> None:
    code = (
        "import sys; from compact_edge.cli.library_env import quiet_libraries as q; q(); "
        "print('transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_libraries_that_are_loaded_already_are_silenced(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity()
    monkeypatch.delenv("TRANSFORMERS_VERBOSITY", raising=False)
    try:
        logging.set_verbosity_info()
        quiet_libraries()
        assert logging.get_verbosity() == logging.ERROR
        assert not logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity(before)
