"""`compact-edge build` end to end on a small checkpoint: what it leaves on disk, what it reuses, what it refuses."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from compact_edge.cli import main as cli
from tests.checkpoints import llama_vocabularies
from tests.compact_edge.pocket_profile import POCKET
from tests.small_builds import Workshop, leftovers, tree


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("build"))


@pytest.fixture(autouse=True)
def cached(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPACT_EDGE_CACHE", str(shop.cache))


@pytest.fixture(scope="module")
def built(shop: Workshop) -> Path:
    """One build through the cache, for the tests that only look at its output."""
    out = shop.root / "built"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPACT_EDGE_CACHE", str(shop.cache))
        assert cli.run([*shop.build(out, "--with-baseline"), "--json"]) == 0
    return out


def run_json(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.run([*arguments, "--json"]) == 0, capsys.readouterr().err
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_layout_checksums_and_name(built: Path) -> None:
    assert sorted(path.name for path in built.iterdir()) == ["baseline", "gguf"]
    names = {path.name for path in (built / "gguf").iterdir()}
    artifact = "model-compact-71K-Q8_0.gguf"  # NAME-SIZE-TYPE, the convention of the GGUF spec
    assert names == {artifact, "plan.json", "manifest.json", "SHA256SUMS", "README.md"}
    assert {path.name for path in (built / "baseline").iterdir()} == {
        *("model-89K-Q8_0.gguf", "manifest.json", "SHA256SUMS", "README.md"),
    }
    for folder in (built / "gguf", built / "baseline"):
        lines = (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
        listed = {line[66:]: line[:64] for line in lines}
        files = {path.name: path for path in folder.iterdir() if path.name != "SHA256SUMS"}
        assert listed == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


def test_manifest_says_what_was_made_from_what(shop: Workshop, built: Path) -> None:
    manifest = json.loads((built / "gguf" / "manifest.json").read_text(encoding="utf-8"))
    plan = json.loads((built / "gguf" / "plan.json").read_text(encoding="utf-8"))
    assert manifest["schema"] == "compact-edge/manifest/1"
    assert manifest["target"] == "gguf"
    weights = hashlib.sha256((shop.model / "model.safetensors").read_bytes()).hexdigest()
    assert manifest["model"]["files"]["model.safetensors"] == weights
    assert manifest["options"]["quant"] == "Q8_0"
    assert manifest["options"]["channel_grid"] == 32
    assert manifest["options"]["calibration"] == ["calibration.txt"]
    assert manifest["plan"]["vocab_size"] == len(plan["kept_token_ids"])
    assert manifest["plan"]["intermediate_size"] == len(plan["kept_channels"][0])
    assert plan["source_id"] == manifest["model"]["source_id"]
    assert manifest["calibration"]["sha256"] == hashlib.sha256(shop.calibration.read_bytes()).hexdigest()
    removed = 1 - manifest["after"]["parameters"]["total"] / manifest["before"]["parameters"]["total"]
    assert removed == pytest.approx(0.2, abs=0.01)
    assert manifest["artifact"]["size_bytes"] == (built / "gguf" / manifest["artifact"]["file"]).stat().st_size
    assert manifest["artifact"]["bits_per_weight"] == pytest.approx(8.5, abs=0.2)
    assert manifest["parity"]["passed"] is True
    assert [check["name"] for check in manifest["parity"]["checks"]] == ["tokenizer", "ends", "chat", "tensors", "kl"]
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((built / "gguf" / name).read_bytes()).hexdigest() == digest
    text = (built / "gguf" / "manifest.json").read_text(encoding="utf-8")
    assert str(shop.root) not in text  # a manifest names no place of the machine that made it


def test_llama_cpp_opens_the_files_with_the_right_vocabulary(built: Path) -> None:
    manifest = json.loads((built / "gguf" / "manifest.json").read_text(encoding="utf-8"))
    files = [next((built / folder).glob("*.gguf")) for folder in ("gguf", "baseline")]
    pruned, original = llama_vocabularies(files, ["hello"])
    assert pruned["n_vocab"] == manifest["plan"]["vocab_size"]
    assert original["n_vocab"] == 421


def test_card_says_how_to_use_it(built: Path) -> None:
    card = (built / "gguf" / "README.md").read_text(encoding="utf-8")
    assert "llama-cli -m model-compact-71K-Q8_0.gguf" in card
    assert "-cnv" in card  # the chat template stands in tokenizer_config.json
    assert "-no-cnv" not in card


def test_second_build_reuses_every_stage_and_equal_bytes_come_without_a_cache(
    shop: Workshop, built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = shop.root / "again"
    result = run_json(capsys, shop.build(again))
    made = {"scores", "pruned", "gguf", "parity", "baseline-kl", "evaluation"}
    assert set(result["stages_reused"]) == made
    assert result["stages_reused"].count("gguf") == 2
    fresh = shop.root / "fresh"
    result = run_json(capsys, shop.build(fresh, "--no-cache"))
    assert result["stages_reused"] == []
    assert tree(fresh / "gguf") == tree(again / "gguf") == tree(built / "gguf")


@pytest.mark.slow
def test_a_changed_option_redoes_only_what_depends_on_it(
    shop: Workshop, built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reused = run_json(capsys, shop.build(shop.root / "f16", quant="F16"))["stages_reused"]
    # F16 asks for no grid of channels, so the plan, and with it the pruned checkpoint, is another one; scores are not.
    assert "scores" in reused
    assert "gguf" not in reused
    reused = run_json(capsys, shop.build(shop.root / "bf16", quant="BF16"))["stages_reused"]
    assert {"scores", "pruned", "evaluation"} <= set(reused)
    assert not {"gguf", "parity"} & set(reused)
    reused = run_json(capsys, shop.build(shop.root / "ratio", "--ratio", "0.3"))["stages_reused"]
    assert "scores" in reused
    assert "pruned" not in reused
    assert reused.count("gguf") == 1  # the baseline's


def test_float32_passes_the_strict_checks(shop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_json(capsys, shop.build(shop.root / "f32", quant="F32"))
    assert [check["name"] for check in result["formats"]["gguf"]["parity"]["checks"]] == [
        "tokenizer",
        "ends",
        "chat",
        "tensors",
        "logits",
        "greedy",
    ]
    assert all(check["passed"] for check in result["formats"]["gguf"]["parity"]["checks"])
    after = result["formats"]["gguf"]["after"]["bits_per_byte"]
    assert after["checkpoint"] == pytest.approx(after["artifact"], abs=1e-4)


def test_without_baseline_and_check(shop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    out = shop.root / "bare"
    assert cli.run(shop.build(out, "--no-baseline", "--no-check")) == 0
    printed = capsys.readouterr().out
    assert "parity gate: skipped (--no-check)" in printed
    assert "pruning loss" not in printed
    manifest = json.loads((out / "gguf" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["before"] is None
    assert manifest["parity"] is None
    assert sorted(path.name for path in out.iterdir()) == ["gguf"]


def test_summary_has_the_rows_and_the_next_commands(
    shop: Workshop, built: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shop.root)
    assert cli.run(shop.build(shop.root / "summary", "--prompt", "Say something.")) == 0
    out, err = capsys.readouterr()
    for row in (
        *("parameters", "file size", "resident memory", "prefill, tokens/s", "decode, tokens/s"),
        *("decode, characters/s", "bits per byte, float32", "bits per byte, Q8_0"),
        *(
            "pruning loss",
            "quantisation loss",
            "parity gate: passed",
            "vocabulary kept for: ",
            "prompt: Say something.",
        ),
    ):
        assert row in out
    less = out[out.index("to lose less at this size:") : out.index("wrote ")].splitlines()
    assert [line.split()[:2] for line in less[1:]] == [
        ["--method", "repair"],
        ["--recover", "distill"],
        ["--fit", "0.1MB"],
    ]
    assert out.rstrip().splitlines()[-4:] == [
        "next:",
        "  compact-edge verify summary",
        "  compact-edge eval summary/gguf/model-compact-71K-Q8_0.gguf --text YOUR_TEXT",
        "  llama-cli -m summary/gguf/model-compact-71K-Q8_0.gguf -cnv",
    ]
    assert "Loading weights" not in err
    assert "Traceback" not in err


def test_an_existing_output_is_left_alone_unless_forced(
    shop: Workshop, built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shop.root / "kept"
    shutil.copytree(built, out)
    before = tree(out)
    assert cli.run(shop.build(out)) == 2
    err = capsys.readouterr().err.splitlines()
    assert err == [f"error: {out}: already exists", "hint: give --force to replace it, or another --out"]
    assert tree(out) == before
    assert cli.run(shop.build(out, "--force", "--no-baseline")) == 0
    assert sorted(path.name for path in out.iterdir()) == ["gguf"]
    assert leftovers(shop.root) == []


def test_force_replaces_nothing_that_is_not_an_earlier_output(
    shop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    home = shop.root / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("years of work")
    assert cli.run(shop.build(home, "--force")) == 2
    assert "is not an earlier output" in capsys.readouterr().err
    assert tree(home) == {"thesis.txt": b"years of work"}
    assert cli.run(shop.build(shop.root, "--force")) == 2  # the model lies in it
    assert "the command reads" in capsys.readouterr().err
    assert shop.model.is_dir()
    file = shop.root / "file"
    file.write_text("x")
    assert cli.run(shop.build(file, "--force")) == 2
    assert file.read_text() == "x"


def test_a_failed_gate_keeps_the_earlier_output(
    shop: Workshop, built: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporters.gate.KL_FACTOR", 0.0)
    monkeypatch.setattr("exporters.gate.KL_FLOOR", 0.0)
    monkeypatch.setenv("COMPACT_EDGE_CACHE", str(shop.root / "gate-cache"))
    out = shop.root / "gate"
    shutil.copytree(built, out)
    before = tree(out)
    assert cli.run(shop.build(out, "--force", "--vocab-size", "340")) == 3
    assert capsys.readouterr().err.splitlines()[-2].startswith("error: parity gate failed, kl: ")
    assert tree(out) == before


def test_a_storage_budget_that_is_too_small_publishes_nothing(
    shop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = shop.root / "pocket.toml"
    profile.write_text(POCKET, encoding="utf-8")
    out = shop.root / "pocket-out"
    large = Workshop(shop.root / "large", hidden_size=128, intermediate_size=320)  # 1.2 MB in float32
    assert cli.run(large.build(out, "--no-baseline", target=str(profile), quant="F32")) == 3
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error:", "hint:"))]
    assert lines[0].startswith("error: storage budget of target pocket: ")
    assert lines[1:] == ["hint: remove more (--ratio), or choose a smaller --quant"]
    assert not out.exists()
    assert leftovers(shop.root) == []
