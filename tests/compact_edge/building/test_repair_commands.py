"""`--method repair` through the commands: what is published, and that every later command takes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from compact_edge.cli import main as cli
from tests.exporters.onnx_graphs import without_child
from tests.small_builds import Workshop, proportional, tree

REPAIR = ("--method", "repair", "--calibration-tokens", "900", "--sequence-length", "64")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("repair"), dtype=torch.float32)


@pytest.fixture(autouse=True)
def cached(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPACT_EDGE_CACHE", str(shop.cache))
    # Random weights predict nothing: as for a model too large to be judged by its bits per byte.
    monkeypatch.setattr("compact.repair.run.fits_in_memory", lambda *_: False)
    without_child(monkeypatch)


def prune(shop: Workshop, out: Path, *options: str) -> list[str]:
    words = ["prune", str(shop.model), "--out", str(out), "--calibration", str(shop.calibration)]
    return [*words, *proportional(*REPAIR, *options)]


@pytest.fixture
def repaired(shop: Workshop) -> Path:
    out = shop.root / "repaired"
    if not out.exists():
        assert cli.run(prune(shop, out, "--quant", "Q8_0")) == 0
    return out


def test_prune_publishes_the_plan_with_its_tensors(shop: Workshop, repaired: Path, tmp_path: Path) -> None:
    plan = json.loads((repaired / "plan.json").read_text())
    assert plan["method"] == "repair"
    assert plan["updates_sha256"] in (repaired / "SHA256SUMS").read_text()
    updates = load_file(repaired / "updates.safetensors")
    weights = load_file(repaired / "model.safetensors")
    assert updates
    assert all(torch.equal(weights[name], tensor) for name, tensor in updates.items())
    assert cli.run(["verify", str(repaired)]) == 0
    assert cli.run(prune(shop, tmp_path / "again", "--quant", "Q8_0", "--no-cache")) == 0
    assert tree(tmp_path / "again") == tree(repaired)


def test_a_changed_tensor_file_is_found(repaired: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in repaired.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    data = bytearray((copy / "updates.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "updates.safetensors").write_bytes(data)
    assert cli.run(["verify", str(copy)]) == 65


def test_later_commands_take_the_checkpoint(shop: Workshop, repaired: Path, tmp_path: Path) -> None:
    assert cli.run(["inspect", str(repaired)]) == 0
    assert cli.run(["eval", str(repaired), "--text", str(shop.text)]) == 0
    assert cli.run(["export", str(repaired), "--quant", "Q8_0", "--out", str(tmp_path / "gguf")]) == 0
    assert cli.run(["verify", str(tmp_path / "gguf")]) == 0
    # A repaired model is a model: it can be pruned further, and does not carry the tensors of its own cut along.
    further = ["prune", str(repaired), "--out", str(tmp_path / "further"), "--vocab-size", "300"]
    assert cli.run(further) == 0
    assert not (tmp_path / "further" / "updates.safetensors").exists()


def test_both_formats_are_built_of_it(shop: Workshop, repaired: Path, tmp_path: Path) -> None:
    """The gates hold the artifacts to the repaired checkpoint, which differs from the plain cut."""
    out = tmp_path / "both"
    options = ("--target", "onnx", "--quant", "onnx=fp32", *REPAIR, "--no-baseline")
    assert cli.run(shop.build(out, *options, quant="gguf=F32")) == 0
    [plan] = {path.read_text() for path in out.rglob("plan.json")}
    assert json.loads(plan)["updates_sha256"] == json.loads((repaired / "plan.json").read_text())["updates_sha256"]
    assert cli.run(["verify", str(out)]) == 0


def test_the_floor_is_an_option_of_the_command(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = ("--vocab-corpus", str(shop.text))
    arguments = ["prune", str(shop.model), "--vocab-size", "320"]
    for floor in ("0", "20"):
        assert cli.run([*arguments, "--out", str(tmp_path / floor), *corpus, "--vocab-floor", floor]) == 0
        assert json.loads((tmp_path / floor / "plan.json").read_text())["options"]["vocab_floor"] == int(floor)
    capsys.readouterr()
    for options, message in (
        ((*corpus, "--vocab-floor", "321"), "--vocab-floor 321: expected 0 to "),
        (("--vocab-floor", "300"), "--vocab-floor 300: only valid with --vocab-corpus"),
        ((*corpus, "--vocab-floor", "-1"), "--vocab-floor"),
    ):
        assert cli.run([*arguments, "--out", str(tmp_path / "none"), *options]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
