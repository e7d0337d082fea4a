"""A method of pruning that only the registry knows: every command takes it and names it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from compact.pruning.methods import COMPACT, register
from tests.small_builds import Workshop, run_child

# Keeps the last channels of every layer, and says in `repair` that it changed no weights.
PROGRAM = """
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

sys.exit(cli.run(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("methods"))


def run(shop: Workshop, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = run_child([sys.executable, "-c", PROGRAM, *arguments], shop.environment())
    assert done.returncode == 0, done.stderr
    return done


def test_prune_takes_a_method_of_the_registry(shop: Workshop, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sizes = ("--vocab-size", "320", "--intermediate-size", "32")
    done = run(shop, "prune", str(shop.model), "--out", str(out), *sizes, "--method", "last", "--json")
    assert json.loads(done.stdout)["method"] == "last"
    plan = json.loads((out / "plan.json").read_text("utf-8"))
    assert (plan["method"], plan["calibration"]) == ("last", None)
    width = json.loads((shop.model / "config.json").read_text("utf-8"))["intermediate_size"]
    assert all(kept == list(range(width - 32, width)) for kept in plan["kept_channels"])


def test_help_lists_it(shop: Workshop) -> None:
    shown = " ".join(run(shop, "prune", "--help").stdout.split())
    assert "[compact|repair|magnitude|random|last|toy]" in shown
    assert "last: keeps the last channels. The others are for comparison." in shown


def test_build_takes_a_method_that_changes_weights_and_names_it(shop: Workshop, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--vocab-size", "320", "--intermediate-size", "32", "--method", "toy", "--no-baseline", "--no-check")
    done = run(shop, *shop.build(out, *options))
    assert "toy: not compared with the plain cut" in done.stdout
    plan = json.loads(next(out.rglob("plan.json")).read_text("utf-8"))
    assert (plan["method"], plan["repair"]["share"]) == ("toy", 1.0)
    cards = "\n".join(path.read_text("utf-8") for path in out.rglob("README.md"))
    assert "channels chosen by last" in cards
    assert "left as it was" in cards


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="'compact' is already registered"):
        register(COMPACT)
