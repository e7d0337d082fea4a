"""A release of a small model, and the cells made of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from compact_edge.cli import main as cli
from tests.compact_edge.pocket_profile import POCKET
from tests.small_builds import Workshop

RELEASE = """
schema = 1
owner = "somebody"
targets = ["gguf", "phone-arm64", "{pocket}"]

[quants]
gguf = "Q8_0"
pocket = "F32"

[[model]]
model = "model"
name = "Small"
ratios = [0.2]
split = "proportional"
calibration = "calibration.txt"
calibration_tokens = 512
eval_text = "evaluation.txt"
"""


CELLS = ("Small-0.2-gguf-Q8_0", "Small-0.2-gguf-Q4_0", "Small-0.2-gguf-F32")


FOLDER = "Small-compact-0.2-GGUF"


class Factory:
    """A release.toml beside a small model, and the cells made of it."""

    def __init__(self, root: Path) -> None:
        # 1.2 MB in float32: too much for the pocket.
        self.shop = Workshop(root, hidden_size=128, intermediate_size=320)
        (root / "pocket.toml").write_text(POCKET.replace("device with", "device | with"), encoding="utf-8")
        self.toml = root / "release.toml"
        self.toml.write_text(RELEASE.format(pocket="pocket.toml"), encoding="utf-8")
        self.plan = root / "plans" / "plan-Small-0.2"
        self.cells = root / "cells"
        self.codes: dict[str, int] = {}

    def make(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("COMPACT_EDGE_CACHE", str(self.shop.cache))
            assert cli.run(["release", str(self.toml), "--cell", self.plan.name, "--out", str(self.plan)]) == 0
            for name in CELLS:
                self.codes[name] = cli.run(self.cell(name, self.cells / name))

    def cell(self, name: str, out: Path, *options: str) -> list[str]:
        words = ["release", str(self.toml), "--cell", name, "--plan", str(self.plan), "--out", str(out)]
        return [*words, "--threads", "1", *options]
