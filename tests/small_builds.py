"""What the tests of the command share: a small checkpoint, short texts, and a build's arguments."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.checkpoints import TEXTS, write_checkpoint

ROOT = Path(__file__).resolve().parents[1]
# Options that decide the sizes.
_SIZES = ("--split", "--vocab-size", "--vocab-coverage", "--intermediate-size", "--plan")
_LIMITS = ("--fit", "--max-memory", "--min-speed", "--max-loss")


class Workshop:
    """A folder with a checkpoint `model`, a calibration text and an evaluation text, and a cache of its own."""

    def __init__(self, root: Path, **checkpoint: object) -> None:
        self.root = root
        self.cache = root / "cache"
        self.model = write_checkpoint(root / "model", **checkpoint)  # type: ignore[arg-type]
        self.calibration = root / "calibration.txt"
        self.calibration.write_text("\n".join(TEXTS * 8), encoding="utf-8")
        self.text = root / "evaluation.txt"
        self.text.write_text("\n".join(reversed(TEXTS)), encoding="utf-8")

    def build(self, out: Path, *options: str, quant: str = "Q8_0", target: str = "gguf") -> list[str]:
        """Arguments of `compact-edge build` for this model."""
        return [
            *("build", str(self.model), "--target", target, "--quant", quant, "--out", str(out), "--threads", "1"),
            *("--calibration", str(self.calibration), "--calibration-tokens", "512", "--eval-text", str(self.text)),
            *proportional(*options),
        ]

    def build_both(self) -> Path:
        """The output of one build of both formats, with baselines."""
        from compact_edge.cli import main as cli
        from tests.exporters.onnx_graphs import without_child

        out = self.root / "both"
        with pytest.MonkeyPatch.context() as patch:
            without_child(patch)
            patch.setenv("COMPACT_EDGE_CACHE", str(self.cache))
            options = ("--target", "onnx", "--quant", "onnx=int4", "--with-baseline")
            assert cli.run(self.build(out, *options, quant="gguf=Q8_0")) == 0
        return out

    def environment(self, **changes: str) -> dict[str, str]:
        """Of a child process: this cache, and a folder of its own for temporary files."""
        return {**os.environ, "COMPACT_EDGE_CACHE": str(self.cache), "TMPDIR": str(self._scratch()), **changes}

    def enter(self, patch: pytest.MonkeyPatch) -> None:
        """Give this process the environment of a child."""
        patch.setenv("COMPACT_EDGE_CACHE", str(self.cache))
        patch.setenv("TMPDIR", str(self._scratch()))
        patch.setattr("tempfile.tempdir", str(self._scratch()))

    def _scratch(self) -> Path:
        scratch = self.root / "scratch"
        scratch.mkdir(exist_ok=True)
        return scratch


def proportional(*options: str) -> tuple[str, ...]:
    """The options, with the rule for sizes that measures nothing if none of them decides the sizes."""
    decided = any(option in (*_SIZES, *_LIMITS) for option in options)
    return options if decided else ("--split", "proportional", *options)


def command(*arguments: str) -> list[str]:
    """The command line of a child process that runs `compact-edge`."""
    return [sys.executable, "-m", "compact_edge", *arguments]


def run_child(arguments: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """A child process in the repository's folder, with its output as text; its exit code is the caller's to judge."""
    return subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def tree(directory: Path) -> Mapping[str, bytes]:
    """Relative name -> content of every file below a directory."""
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def leftovers(*places: Path) -> list[str]:
    """Temporary files and directories of ours below `places`."""
    marks = (".tmp-", "compact-edge-")
    return [str(p) for place in places if place.is_dir() for p in place.rglob("*") if any(m in p.name for m in marks)]
