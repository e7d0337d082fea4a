"""`--recover distill` through the commands: what it reads, and what they say and record of it."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from gguf import GGUFReader

from compact.base.errors import ToolUnavailableError
from compact.pruning.options import PruneOptions
from compact.pruning.plan import PrunePlan, read_plan
from compact.pruning.recover_options import RecoverOptions
from compact_edge.building.method_report import gain_lines
from compact_edge.cli import main as cli
from tests.small_builds import Workshop, proportional

DISTILL = ("--recover", "distill", "--recover-tokens", "400")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("recover"))


@pytest.fixture(autouse=True)
def cached(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPACT_EDGE_CACHE", str(shop.cache))


def prune(shop: Workshop, out: Path, *options: str) -> list[str]:
    short = ("--calibration-tokens", "512")
    return [
        "prune",
        str(shop.model),
        "--out",
        str(out),
        "--calibration",
        str(shop.calibration),
        *short,
        *proportional(*options),
    ]


def test_prune_says_and_records_what_was_learned(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Every weight of this model is random: a large rate finds something better at once.
    learn = (*DISTILL, "--learning-rate", "0.01", "--recover-text", "stdlib-prose", "--vocab-size", "300")
    assert cli.run(prune(shop, tmp_path / "out", *learn, "--json")) == 0
    result = json.loads(capsys.readouterr().out)
    plan = read_plan(tmp_path / "out" / "plan.json")
    assert plan.recovery is not None
    assert result["recovery"]["after"] == plan.recovery["after"]
    assert (result["method"], result["repair"]) == ("compact", None)
    assert cli.run(["verify", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert cli.run(prune(shop, tmp_path / "again", *learn)) == 0
    lines = capsys.readouterr().out.splitlines()
    before, after = plan.recovery["before"]["stdlib-prose"], plan.recovery["after"]["stdlib-prose"]
    unpruned = plan.recovery["unpruned"]["stdlib-prose"]
    shares = f"({before / unpruned - 1:+.1%} -> {after / unpruned - 1:+.1%})"
    expected = f"recovery: bits per byte on held-out text stdlib-prose {before:.4f} -> {after:.4f} {shares}"
    assert [line for line in lines if line.startswith(expected)]


def test_a_budget_in_minutes_ends_the_training(shop: Workshop, tmp_path: Path) -> None:
    learn = ("--recover", "distill", "--recover-minutes", "0.02", "--learning-rate", "0.01", "--vocab-size", "300")
    assert cli.run(prune(shop, tmp_path / "out", *learn)) == 0
    recovery = read_plan(tmp_path / "out" / "plan.json").recovery
    assert recovery is not None
    before, last = recovery["history"][-2:]
    assert last["seconds"] >= 1.2
    assert last["done"] >= 1 > before["done"]  # the clock's seconds are rounded


def test_a_build_exports_what_was_learned(shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    learn = (*DISTILL, "--learning-rate", "0.01", "--method", "repair", "--ratio", "0.15")
    assert cli.run(shop.build(tmp_path / "out", *learn)) == 0
    folder = tmp_path / "out" / "gguf"
    assert "trained by the original on" in (folder / "README.md").read_text("utf-8")
    (file,) = folder.glob("*.gguf")
    field = GGUFReader(file).get_field("general.description")
    assert field is not None
    said = str(field.contents())
    assert said.endswith(", trained by the original")
    plan = read_plan(folder / "plan.json")
    assert (", repaired by least squares" in said) == bool(plan.repair and plan.repair["share"])
    offered = capsys.readouterr().out.split("to lose less at this size:\n")[1].splitlines()
    assert offered[0].split()[0] == "--fit"
    assert not any("--method" in line or "--recover" in line for line in offered[:2])


def test_prune_offers_what_loses_less(shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(prune(shop, tmp_path / "out", "--ratio", "0.15")) == 0
    offered = capsys.readouterr().out.split("to lose less at this size:\n")[1].splitlines()[:2]
    assert [line.split()[:2] for line in offered] == [["--method", "repair"], ["--recover", "distill"]]
    assert re.search(r"\d\.\d GB of memory$", offered[1])


def test_a_training_that_memory_will_not_hold_is_announced(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compact.distill.memory.free_memory", lambda _: 1000)
    learn = (*DISTILL, "--recover-text", "stdlib", "--ratio", "0.18", "--seed", "3")
    assert cli.run(prune(shop, tmp_path / "out", *learn)) == 69
    said = capsys.readouterr().err
    assert said.index("will need about") < said.index("calibrating")
    assert "error: --recover distill needs about" in said
    assert not (tmp_path / "out").exists()


def outcome(plan: PrunePlan, *, recover: bool = True) -> list[str]:
    return gain_lines(plan, PruneOptions(method="repair", recover=RecoverOptions() if recover else None))


def test_steps_that_gave_nothing_are_not_passed_over(shop: Workshop, tmp_path: Path) -> None:
    assert cli.run(prune(shop, tmp_path / "out", "--vocab-size", "300")) == 0
    plan = read_plan(tmp_path / "out" / "plan.json")
    judged = {"text": {"plain": 1.25, "repaired": 1.125}}
    useless = replace(plan, repair={"share": 0.0, "bits_per_byte": judged})
    assert ["plain cut is kept" in line for line in outcome(useless, recover=False)] == [True]
    repair, recovery = outcome(useless)
    assert repair.startswith("repair: worse than the plain cut")
    assert recovery.startswith("recovery: training found no better model")
    half = outcome(replace(plan, repair={"share": 0.5, "bits_per_byte": judged}), recover=False)
    assert half == ["repair: text 1.2500 -> 1.1250 bits per byte on held-out text, 50% of the change kept"]
    assert outcome(replace(plan, repair={"share": 1.0, "bits_per_byte": {}}), recover=False) == [
        "repair: not compared with the plain cut, because memory was short"
    ]
    assert gain_lines(plan, PruneOptions()) == []


def test_a_text_of_the_hub_may_be_fetched(shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(word: str, option: str) -> None:
        raise ToolUnavailableError(f"{option} {word}")

    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("compact.distill.text.require_datasets", absent)
    named = (*DISTILL, "--recover-text", "org/texts")
    build = shop.build(tmp_path / "out", *named)
    for command in (prune(shop, tmp_path / "out", *named), build):
        assert cli.run(command) == 69
        assert "HF_HUB_OFFLINE" not in os.environ


def test_the_text_is_never_replaced_by_the_output(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "SHA256SUMS").write_text("")
    (out / "mine.txt").write_text("text to learn from")
    assert cli.run(prune(shop, out, *DISTILL, "--recover-text", str(out / "mine.txt"), "--force")) == 2
    assert "contains mine.txt, which the command reads" in capsys.readouterr().err
    assert (out / "mine.txt").read_text() == "text to learn from"


@pytest.mark.parametrize("command", ["build", "prune"])
def test_help_has_a_heading_for_each_subject(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([command, "--help"]) == 0
    text = capsys.readouterr().out
    headings = re.findall(r"^(\w[\w ]*):$", text, re.MULTILINE)
    assert headings[:6] == ["Options", "Sizes", "Vocabulary and channels", "Calibration", "Recovery", "Computation"]
    names = re.findall(r"^  (--[a-z0-9-]+)", text, re.MULTILINE)
    assert len(names) == len(set(names))
    recovery = text[text.index("Recovery:") : text.index("Computation:")]
    assert "--recover-minutes" in recovery
    assert "(default: a share of the root mean square" in " ".join(recovery.split())
