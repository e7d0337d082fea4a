"""prune, export, eval, inspect and verify: what each does, and the line and code of each thing that can be wrong."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compact_edge.cli import main as cli
from tests.checkpoints import llama_vocabularies
from tests.compact_edge.cli.bad_models import BAD_MODELS
from tests.compact_edge.running import assert_error, run_json
from tests.small_builds import Workshop, proportional, tree

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    shop = Workshop(tmp_path_factory.mktemp("commands"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPACT_EDGE_CACHE", str(shop.cache))
        assert cli.run(prune(shop, shop.root / "pruned")) == 0
        assert cli.run(["export", str(shop.root / "pruned"), "--quant", "F32", "--out", str(shop.root / "gguf")]) == 0
    return shop


@pytest.fixture(autouse=True)
def cached(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPACT_EDGE_CACHE", str(shop.cache))
    monkeypatch.delenv("COMPACT_EDGE_DEBUG", raising=False)


def prune(shop: Workshop, out: Path, *options: str, model: Path | None = None) -> list[str]:
    return [
        *("prune", str(model or shop.model), "--out", str(out)),
        *("--calibration", str(shop.calibration), "--calibration-tokens", "512", *proportional(*options)),
    ]


def artifact(shop: Workshop) -> Path:
    return next((shop.root / "gguf").glob("*.gguf"))


def test_two_calibrations_give_half_each(shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ("--vocab-size", "350", "--intermediate-size", "64")
    assert cli.run(prune(shop, tmp_path / "out", "--calibration", "stdlib", *sizes)) == 0
    made = json.loads((tmp_path / "out" / "plan.json").read_text(encoding="utf-8"))["calibration"]
    assert [(source["name"], source["tokens"]) for source in made["sources"]] == [
        ("calibration.txt", 256),
        ("stdlib", 256),
    ]
    assert made["name"] == "calibration.txt + stdlib"
    again = prune(shop, tmp_path / "again", "--calibration", str(shop.calibration))
    assert_error(capsys, again, 2, "calibration.txt: named twice", "")


def test_the_model_calibrates_itself(shop: Workshop, tmp_path: Path) -> None:
    sizes = ("--intermediate-size", "64", "--calibration-tokens", "256", "--sequence-length", "32")
    command = ["prune", str(shop.model), "--out", str(tmp_path / "out"), "--calibration", "self", *sizes]
    assert cli.run(command) == 0
    made = json.loads((tmp_path / "out" / "plan.json").read_text(encoding="utf-8"))["calibration"]
    assert (made["name"], made["n_tokens"]) == ("self", 256)


def test_prune_writes_a_checkpoint_that_transformers_loads(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "out"
    result = run_json(capsys, *prune(shop, out, "--vocab-size", "350", "--intermediate-size", "64"))
    assert (result["vocab_size"], result["intermediate_size"]) == (350, 64)
    model = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert model.config.vocab_size == 350
    assert sum(p.numel() for p in model.parameters()) == result["parameters_after"]["total"]
    assert max(tokenizer("The quick brown fox")["input_ids"]) < 350
    assert json.loads((out / "plan.json").read_text(encoding="utf-8"))["source_name"] == "model"
    assert cli.run(["verify", str(out)]) == 0


def test_prune_says_what_to_do_next(shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a name"
    assert cli.run(prune(shop, out)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "19.9% removed" in lines[0]
    # tests/compact_edge/building/test_languages.py has what these lines say.
    starts = ("vocabulary kept for: ", "these need more tokens: ", "to keep ")
    assert [line.startswith(start) for line, start in zip(lines[1:4], starts, strict=True)] == [True] * 3
    assert lines[4] == "to lose less at this size:"
    assert [line.split()[0] for line in lines[5:7]] == ["--method", "--recover"]
    assert lines[7:] == [
        f"wrote {out}",
        "next:",
        f"  compact-edge export '{out}' --quant Q8_0 --out '{out}-gguf'",
    ]


def test_prune_twice_gives_equal_bytes(shop: Workshop, tmp_path: Path) -> None:
    assert cli.run(prune(shop, tmp_path / "again", "--no-cache")) == 0
    assert tree(tmp_path / "again") == tree(shop.root / "pruned")


def test_export_of_a_pruned_checkpoint(shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    result = run_json(capsys, "export", str(shop.root / "pruned"), "--quant", "q8_0", "--out", str(out))
    assert result["quant"] == "Q8_0"
    assert Path(result["file"]).name == "pruned-71K-Q8_0.gguf"
    assert result["parity"]["passed"] is True
    (vocabulary,) = llama_vocabularies([Path(result["file"])], ["x"])
    assert vocabulary["n_vocab"] == 337
    assert cli.run(["verify", str(out)]) == 0
    assert cli.run(["export", str(shop.root / "pruned"), "--out", str(tmp_path / "f16"), "--no-check"]) == 0
    assert "F16" in capsys.readouterr().out


def test_eval_gives_the_same_for_a_checkpoint_and_its_float32_gguf(
    shop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = run_json(capsys, "eval", str(shop.root / "pruned"), "--text", str(shop.text))
    exported = run_json(capsys, "eval", str(artifact(shop)), "--text", str(shop.text), "--threads", "1")
    assert checkpoint["bits_per_byte"] == pytest.approx(exported["bits_per_byte"], abs=1e-4)
    # All but the first token, which has nothing before it.
    assert checkpoint["n_bytes"] == exported["n_bytes"] < len(shop.text.read_bytes())
    assert checkpoint["n_tokens"] == exported["n_tokens"]
    part = run_json(capsys, "eval", str(shop.root / "pruned"), "--text", str(shop.text), "--max-bytes", "200")
    assert part["n_bytes"] <= 200
    assert cli.run(["eval", str(shop.root / "pruned"), "--text", str(shop.text), "--split", "held-out"]) == 0
    assert "bits per byte (evaluation.txt, held-out:" in capsys.readouterr().out


def test_inspect_counts_every_parameter(shop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_json(capsys, "inspect", str(shop.model))
    assert result["vocab_size"] == 421
    parts = result["parameters"]
    assert parts["vocabulary"] == 421 * 64
    assert parts["total"] == sum(count for name, count in parts.items() if name != "total") == 88_704
    assert result["parameters_per_channel"] == 2 * 3 * 64
    assert cli.run(["inspect", str(artifact(shop))]) == 0  # a GGUF, through its own reader
    assert "vocabulary" in capsys.readouterr().out


def test_verify_names_the_file_that_is_wrong(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = tmp_path / "good"
    shutil.copytree(shop.root / "gguf", good / "gguf")
    result = run_json(capsys, "verify", str(good))
    assert list(result["files"]) == [f"gguf/{artifact(shop).name}"]
    name = artifact(shop).name

    def damaged(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[-1] ^= 1
        (folder / name).write_bytes(content)

    damages: list[tuple[Callable[[Path], Any], str]] = [
        (damaged, f"{name}: damaged, its sha256 differs"),
        (lambda folder: (folder / name).unlink(), f"{name}: missing, but listed in SHA256SUMS"),
        (lambda folder: (folder / "extra.bin").write_bytes(b"x"), "extra.bin: not listed in SHA256SUMS"),
        (lambda folder: (folder / "SHA256SUMS").unlink(), "contains no SHA256SUMS"),
        (
            lambda folder: (folder / "SHA256SUMS").write_text("nonsense\n"),
            "SHA256SUMS:1: not in the format of sha256sum",
        ),
        (lambda folder: (folder / "SHA256SUMS").write_text(f"{'a' * 64}  ../x\n"), "points outside its directory"),
    ]
    for number, (damage, message) in enumerate(damages):
        copy = tmp_path / f"bad{number}"
        shutil.copytree(good, copy)
        damage(copy / "gguf")
        assert_error(capsys, ["verify", str(copy)], 65, message)


@pytest.mark.parametrize("name", BAD_MODELS)
def test_every_command_refuses_a_bad_model(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    make, message = BAD_MODELS[name]
    out = tmp_path / "out"
    (tmp_path / "models").mkdir()
    model = make(tmp_path / "models")
    assert_error(capsys, prune(shop, out, model=model), 65, message)
    assert_error(capsys, ["build", str(model), "--target", "gguf", "--out", str(out)], 65, message)
    assert_error(capsys, ["export", str(model), "--out", str(out)], 65, message)
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "code", "message", "hint"),
    [
        (["--ratio", "1.5"], 2, "--ratio 1.5: out of range", "between 0 and 1"),
        (["--ratio", "0"], 2, "--ratio 0: out of range", ""),
        (["--ratio", "0.9"], 2, "--ratio 0.9: not reachable", "smaller --ratio"),
        (["--ratio", "0.1", "--vocab-size", "400"], 2, "exclude each other", "one of them"),
        (["--vocab-size", "3"], 2, "--vocab-size", ""),
        (["--intermediate-size", "100000"], 2, "--intermediate-size", ""),
        (["--quant", "Q4_KM"], 2, "quantization 'Q4_KM' is not known", "did you mean 'Q4_K_M'"),
        (["--calibration", "{root}/empty.txt"], 65, "empty.txt: contains no text", ""),
        (["--calibration", "{root}/short.txt"], 65, "short.txt: only", "longer"),
        (["--calibration", "{root}/absent.txt"], 65, "absent.txt: no such file", "stdlib"),
        (["--calibration", "{root}/binary.txt"], 65, "binary.txt: not UTF-8", ""),
        (["--calibration", "{root}/bad.jsonl"], 65, "bad.jsonl:1: not valid JSON", ""),
        (["--vocab-corpus", "{root}/absent.txt"], 74, "absent.txt", ""),
        (["--calibration-tokens", "3"], 2, "--calibration-tokens 3", ""),
        (["--sequence-length", "99999"], 2, "--sequence-length 99999", ""),
        (["--batch-size", "0"], 2, "--batch-size", "--help"),
        (["--method", "compacct"], 2, "compacct", ""),
        (["--device", "cuda"], 2, "--device cuda: not available on this machine", "cpu"),
        (["--rato", "0.1"], 2, "no such option", "--ratio"),
        (["--learning-rate", "0.1"], 2, "--learning-rate: applies only with --recover", "--recover distill"),
        (["--train", "all"], 2, "--train: applies only with --recover", "--recover distill"),
        (
            ["--repair-tokens", "common"],
            2,
            "--repair-tokens common: applies only to --method repair",
            "--method repair",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_prune_refuses_bad_options(
    shop: Workshop,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    code: int,
    message: str,
    hint: str,
) -> None:
    import torch

    if "cuda" in options and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "short.txt").write_text("hi")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "bad.jsonl").write_text("{nonsense\n")
    out = tmp_path / "out"
    filled = [option.format(root=tmp_path) for option in options]
    assert_error(capsys, prune(shop, out, *filled), code, message, hint)
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "code", "message", "hint"),
    [
        (["--target", "gguff"], 2, "no target named 'gguff'", "did you mean 'gguf'"),
        (["--target", "gguf", "--quant", "Q5_KM"], 2, "quantization 'Q5_KM' is not known", "Q5_K_M"),
        (["--target", "gguf", "--quant", "zzz"], 2, "quantization 'zzz' is not known", "one of: F32, F16"),
        (["--target", "gguf", "--embedding-quant", "Q8"], 2, "tensor type 'Q8' is not known", "Q8_0"),
        (["--target", "gguf", "--with-baseline", "--no-baseline"], 2, "exclude each other", ""),
        (["--target", "gguf", "--quant", "Q8_0", "--imatrix", "x"], 2, "--imatrix: Q8_0 files do not use one", ""),
        (["--target", "gguf", "--quant", "Q4_0", "--imatrix", "x"], 65, "--imatrix x: no such file", ""),
        (["--target", "gguf", "--eval-text", "absent.txt"], 74, "absent.txt", ""),
        (["--target", "gguf", "--threads", "0"], 2, "--threads", ""),
        (
            ["--target", "gguf", "--recover", "distill", "--recover-text", "absent.txt"],
            65,
            "absent.txt: no such file",
            "stdlib-prose",
        ),
        (
            ["--target", "gguf", "--recover", "distill", *("--recover-text", "stdlib") * 2],
            2,
            "--recover-text stdlib: named twice",
            "once",
        ),
        ([], 2, "missing option '--target'", "build --help"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_build_refuses_bad_options_before_any_work(
    shop: Workshop,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    code: int,
    message: str,
    hint: str,
) -> None:
    monkeypatch.setattr("compact_edge.building.deciding.decide", lambda *_, **__: pytest.fail("work was done"))
    out = tmp_path / "out"
    assert_error(capsys, ["build", str(shop.model), *options, "--out", str(out)], code, message, hint)
    assert not out.exists()


def test_export_and_eval_refuse_bad_options(shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export = ["export", str(shop.root / "pruned"), "--out", str(tmp_path / "out")]
    assert_error(capsys, [*export, "--quant", "F17"], 2, "quantization 'F17' is not known", "'F16'")
    assert_error(capsys, [*export, "--quant", "IQ2_M"], 2, "--quant IQ2_M: needs an importance matrix", "--calibration")
    assert_error(capsys, [*export, "--format", "tflite"], 2, "'tflite'", "--help")
    both = [*export, "--imatrix", "x", "--calibration", "stdlib"]
    assert_error(capsys, both, 2, "exclude each other")
    text = ["--text", str(shop.text)]
    assert_error(capsys, ["eval", str(tmp_path / "no.gguf"), *text], 65, "no.gguf")
    assert_error(capsys, ["eval", "tinny", *text], 65, "tinny: no such directory", "did you mean 'tiny'")
    assert_error(capsys, ["eval", str(shop.model), "--text", str(tmp_path / "no.txt")], 74, "no.txt")
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    assert_error(capsys, ["eval", str(shop.model), "--text", str(empty)], 65, "contains no text")
    assert_error(capsys, ["eval", str(shop.model), *text, "--max-bytes", "1"], 65, "fewer than two tokens")
    torn_file = tmp_path / "torn.gguf"
    torn_file.write_bytes(artifact(shop).read_bytes()[:5000])
    assert_error(capsys, ["eval", str(torn_file), *text], 65, "torn.gguf")
    assert_error(capsys, ["inspect", str(torn_file)], 65, "torn.gguf")


def test_an_existing_output_is_kept(shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    for arguments in (prune(shop, out), ["export", str(shop.root / "pruned"), "--out", str(out)]):
        assert_error(capsys, arguments, 2, f"{out}: already exists", "--force")
        assert_error(capsys, [*arguments, "--force"], 2, "is not an earlier output", "remove it yourself")
    # An export must not replace the checkpoint that it reads.
    pruned = str(shop.root / "pruned")
    assert_error(capsys, ["export", pruned, "--out", pruned, "--force"], 2, "contains pruned, which the command reads")
    assert tree(out) == {"mine.txt": b"mine"}


def test_force_replaces_an_earlier_output(shop: Workshop, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert cli.run(prune(shop, out)) == 0
    (out / "stale.txt").write_text("x")
    assert cli.run(prune(shop, out, "--force", "--ratio", "0.1")) == 0
    assert not (out / "stale.txt").exists()
    assert cli.run(["verify", str(out)]) == 0


def test_too_little_disk_is_said_before_the_work(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(10**9, 10**9, 1000))
    monkeypatch.setenv("COMPACT_EDGE_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    for arguments in (prune(shop, out), shop.build(out), ["export", str(shop.root / "pruned"), "--out", str(out)]):
        assert_error(capsys, arguments, 74, "MB are needed, but only 0 MB are free", "free some space")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_plan_of_the_checkpoint_that_is_damaged_is_refused(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shop.root / "pruned", copy)
    (copy / "plan.json").write_text("[]")
    assert_error(capsys, ["export", str(copy), "--out", str(tmp_path / "out")], 65, "plan.json")


def test_scores_of_a_cache_that_was_cut_short_are_made_again(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPACT_EDGE_CACHE", str(tmp_path / "cache"))
    assert cli.run(prune(shop, tmp_path / "one")) == 0
    (scores,) = (tmp_path / "cache" / "scores").glob("*/scores.npz")
    scores.write_bytes(scores.read_bytes()[:100])
    assert cli.run(prune(shop, tmp_path / "two")) == 0
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    with np.load(scores) as data:
        assert data["sums"].shape[0] == 2
