"""A method of pruning that only the registry knows: every command takes it and names it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from compact.pruning.methods import COMPACT, register
from tests.small_builds import ROOT, Workshop

# Keeps the last channels of every layer, and says in `repair` that it changed no weights.
PROGRAM = """
import json
import sys
from dataclasses import replace

import numpy as np

from compact.pruning.channel_scores import FixedScores
from compact.pruning.methods import Method, register


def score(context, calibration, vocab_size):
    assert calibration is None
    shape = context.source.num_hidden_layers, context.source.intermediate_size
    return FixedScores(np.tile(np.arange(shape[1], dtype=np.float64), (shape[0], 1)))


def adapt(context, plan, calibration):
    assert calibration.held_out
    return replace(plan, repair={"share": 1.0, "bits_per_byte": None}), None


register(Method("last", score, help="keeps the last channels"))
register(Method("toy", score, adapt=adapt, needs_held_out=True, channels_of="last", adapted_in_card="left as it was"))

from compact_edge.cli import main as cli

for arguments in json.load(sys.stdin):
    assert cli.run(arguments) == 0, arguments
    print("--- end of a command ---", flush=True)
"""
END = "--- end of a command ---"
SIZES = ("--vocab-size", "320", "--intermediate-size", "32")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("methods"))


@dataclass(frozen=True)
class Outcome:
    """What the commands printed, and where prune and build wrote."""

    prune: str
    help: str
    build: str
    pruned: Path
    built: Path


@pytest.fixture(scope="module")
def outcome(shop: Workshop) -> Outcome:
    """One process that knows the methods runs all commands, because importing torch takes longer than they do."""
    pruned, built = shop.root / "pruned", shop.root / "built"
    commands = [
        ["prune", str(shop.model), "--out", str(pruned), *SIZES, "--method", "last", "--json"],
        ["prune", "--help"],
        shop.build(built, *SIZES, "--method", "toy", "--no-baseline", "--no-check"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=json.dumps(commands), cwd=ROOT, env=shop.environment(),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = done.stdout.split(END + "\n")
    return Outcome(*shown[:3], pruned, built)


def test_prune_takes_a_method_of_the_registry(shop: Workshop, outcome: Outcome) -> None:
    assert json.loads(outcome.prune)["method"] == "last"
    plan = json.loads((outcome.pruned / "plan.json").read_text("utf-8"))
    assert (plan["method"], plan["calibration"]) == ("last", None)
    width = json.loads((shop.model / "config.json").read_text("utf-8"))["intermediate_size"]
    assert all(kept == list(range(width - 32, width)) for kept in plan["kept_channels"])


def test_help_lists_it(outcome: Outcome) -> None:
    shown = " ".join(outcome.help.split())
    assert "[compact|repair|magnitude|random|last|toy]" in shown
    assert "last: keeps the last channels. The others are for comparison." in shown


def test_build_takes_a_method_that_changes_weights_and_names_it(outcome: Outcome) -> None:
    assert "toy: not compared with the plain cut" in outcome.build
    plan = json.loads(next(outcome.built.rglob("plan.json")).read_text("utf-8"))
    assert (plan["method"], plan["repair"]["share"]) == ("toy", 1.0)
    cards = "\n".join(path.read_text("utf-8") for path in outcome.built.rglob("README.md"))
    assert "channels chosen by last" in cards
    assert "left as it was" in cards


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="'compact' is already registered"):
        register(COMPACT)
