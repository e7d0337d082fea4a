"""`build`, `export`, `eval` and `verify` for ONNX on a small checkpoint, alone and beside GGUF."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from compact.base.files import sha256_file
from compact_edge.cli import main as cli
from exporters.native.child import NativeChild
from targets.profile import __file__ as profile_module
from tests.checkpoints import copy_checkpoint
from tests.exporters.onnx_graphs import without_child
from tests.small_builds import Workshop, leftovers, proportional, tree

FILES = {"model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json", "tokenizer_config.json", "config.json"}
OURS = {"plan.json", "manifest.json", "SHA256SUMS", "README.md"}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("build-onnx"))


@pytest.fixture(autouse=True)
def cached(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of this module; the model builder runs in this process, but for the build `both`."""
    monkeypatch.setenv("COMPACT_EDGE_CACHE", str(shop.cache))
    without_child(monkeypatch)


def arguments(shop: Workshop, out: Path, *options: str, targets: tuple[str, ...] = ("onnx",)) -> list[str]:
    named = [part for target in targets for part in ("--target", target)]
    texts = ["--calibration", str(shop.calibration), "--calibration-tokens", "512", "--eval-text", str(shop.text)]
    return ["build", str(shop.model), *named, "--out", str(out), "--threads", "1", *texts, *proportional(*options)]


def run_json(capsys: pytest.CaptureFixture[str], line: list[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.run([*line, "--json"]) == 0, capsys.readouterr().err
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def refused(capsys: pytest.CaptureFixture[str], line: list[str], code: int, message: str, hint: str) -> None:
    capsys.readouterr()
    assert cli.run(line) == code
    out, err = capsys.readouterr()
    lines = [entry for entry in err.splitlines() if entry.startswith(("error:", "hint:"))]
    assert out == "" and len(lines) == 2, err
    assert message in lines[0] and hint in lines[1]


@pytest.fixture(scope="module")
def both(shop: Workshop) -> Path:
    """One build for two targets, with baselines."""
    out = shop.root / "both"
    types = ("--quant", "gguf=Q8_0", "--quant", "onnx=int4")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPACT_EDGE_CACHE", str(shop.cache))
        patch.setattr("exporters.onnx.write.NativeChild", NativeChild)
        line = arguments(shop, out, *types, "--with-baseline", targets=("gguf", "onnx"))
        assert cli.run(line) == 0
    return out


@pytest.mark.slow
def test_one_prune_and_two_formats(shop: Workshop, both: Path) -> None:
    assert {path.name for path in both.iterdir()} == {"gguf", "onnx", "baseline-gguf", "baseline-onnx"}
    assert {path.name for path in (both / "onnx").iterdir()} >= FILES | OURS
    manifests = {
        name: json.loads((both / name / "manifest.json").read_text(encoding="utf-8")) for name in ("gguf", "onnx")
    }
    gguf, onnx = manifests["gguf"], manifests["onnx"]
    assert gguf["plan"] == onnx["plan"] and gguf["options"]["channel_grid"] == 32
    assert (gguf["format"], gguf["options"]["quant"]) == ("gguf", "Q8_0")
    assert (onnx["format"], onnx["options"]["quant"]) == ("onnx", "int4")
    assert onnx["options"]["algo_config"] == "default_last" and onnx["options"]["block_size"] == 32
    assert onnx["artifact"]["file"] == "model.onnx" and onnx["artifact"]["embedding_type"] == "int8"
    assert onnx["versions"].keys() >= {"onnxruntime", "onnxruntime-genai", "onnx"}
    size = sum((both / "onnx" / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
    assert onnx["artifact"]["size_bytes"] == size
    names = [check["name"] for check in onnx["parity"]["checks"]]
    assert names == ["graph", "tokenizer", "kl", "chat"] and onnx["parity"]["passed"] is True
    assert onnx["parity"]["partial"] is False
    for name, digest in onnx["files"].items():
        assert sha256_file(both / "onnx" / name) == digest
    assert str(shop.root) not in (both / "onnx" / "manifest.json").read_text(encoding="utf-8")
    assert cli.run(["verify", str(both)]) == 0


@pytest.mark.slow
def test_the_configuration_has_the_new_vocabulary_and_a_bounded_cache(both: Path) -> None:
    plan = json.loads((both / "onnx" / "manifest.json").read_text(encoding="utf-8"))["plan"]
    genai = json.loads((both / "onnx" / "genai_config.json").read_text(encoding="utf-8"))
    config = json.loads((both / "onnx" / "config.json").read_text(encoding="utf-8"))
    assert genai["model"]["vocab_size"] == plan["vocab_size"] == config["vocab_size"]
    assert genai["model"]["bos_token_id"] == config["bos_token_id"]
    # The target's context, or the model's where that is shorter: the runtime reserves this many positions.
    assert genai["search"]["max_length"] == 256
    session = onnxruntime.InferenceSession(str(both / "onnx" / "model.onnx"), providers=["CPUExecutionProvider"])
    logits = next(output for output in session.get_outputs() if output.name == "logits")
    assert logits.shape[-1] == plan["vocab_size"]


@pytest.mark.slow
def test_the_code_in_the_card_runs(both: Path) -> None:
    card = (both / "onnx" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n") and "- onnxruntime-genai\n" in card.split("---")[1]
    code = re.search(r"```python\n(.*?)```", card, re.S)
    assert code is not None
    done = subprocess.run(
        [sys.executable, "-c", code[1]], cwd=both / "onnx", capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_a_type_of_its_own_for_each_format(shop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    out = shop.root / "x"
    two = ("gguf", "onnx")
    line = arguments(shop, out, "--quant", "Q8_0", targets=two)
    refused(capsys, line, 2, "--quant Q8_0: the format is missing", "--quant gguf=TYPE --quant onnx=TYPE")
    line = arguments(shop, out, "--quant", "gguf=Q8_0", "--quant", "gguf=Q4_0", targets=two)
    refused(capsys, line, 2, "gguf already has the type Q8_0", "give it once")
    line = arguments(shop, out, "--quant", "tflite=int8", targets=two)
    refused(capsys, line, 2, "--quant tflite=int8: not a format of this build", "--quant gguf=TYPE")
    line = arguments(shop, out, "--quant", "int4", "--quant", "int8")
    refused(capsys, line, 2, "--quant int8: a type was given already", "give one per format")
    line = arguments(shop, out, targets=("gguf", "phone-arm64"))
    refused(capsys, line, 2, "--target phone-arm64: gguf has the same format, gguf", "one after another")
    line = arguments(shop, out, "--quant", "Q8_0")
    refused(capsys, line, 2, "'Q8_0'", "fp32")
    line = arguments(shop, out, "--quant", "fp32", "--algo-config", "rtn")
    refused(capsys, line, 2, "algo_config", "omit it")
    odd = ("--algo-config", "k_quant", "--block-size", "16", "--vocab-size", "400", "--intermediate-size", "80")
    refused(
        capsys,
        arguments(shop, out, *odd),
        2,
        "--intermediate-size 80: k_quant needs an even number of blocks, but rows of 80",
        "",
    )
    line = arguments(shop, out, "--modelfile")
    refused(capsys, line, 2, "--modelfile: applies only to GGUF", "--target gguf")
    line = arguments(shop, out, "--block-size", "64", targets=("gguf",))
    refused(capsys, line, 2, "--block-size: applies only to ONNX", "--target onnx")
    assert not out.exists() and leftovers(shop.root) == []


@pytest.mark.slow
def test_float32_passes_the_strict_checks_and_equal_builds_are_equal_bytes(
    shop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shop.root / "fp32"
    result = run_json(capsys, arguments(shop, out, "--quant", "fp32"))["formats"]["onnx"]
    assert [check["name"] for check in result["parity"]["checks"]] == [
        *("graph", "tokenizer", "logits", "greedy", "chat")
    ]
    bits = result["after"]["bits_per_byte"]
    assert bits["checkpoint"] == pytest.approx(bits["artifact"], abs=1e-5)
    assert result["artifact"] == "model.onnx" and set(result["artifact_files"]) == FILES
    fresh = shop.root / "fresh"
    assert run_json(capsys, arguments(shop, fresh, "--quant", "fp32", "--no-cache"))["stages_reused"] == []
    assert tree(fresh) == tree(out)


@pytest.mark.slow
def test_a_provider_that_is_not_here(shop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    out = shop.root / "dml"
    line = arguments(shop, out, targets=("laptop-windows-dml",))
    assert cli.run(line) == 0
    printed = capsys.readouterr()
    assert "parity gate: passed in part, " in printed.out and "dml" in printed.out + printed.err
    manifest = json.loads((out / "onnx" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["target"] == "laptop-windows-dml" and manifest["parity"]["partial"] is True
    assert manifest["artifact"]["execution_provider"] == "dml"
    genai = json.loads((out / "onnx" / "genai_config.json").read_text(encoding="utf-8"))
    providers = genai["model"]["decoder"]["session_options"]["provider_options"]
    assert [name for entry in providers for name in entry] == ["dml"]
    assert "in part (" in (out / "onnx" / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_memory_budget_is_held_where_it_was_measured(shop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    profile = shop.root / "pocket.toml"
    text = (Path(profile_module).parent / "profiles" / "onnx.toml").read_text(encoding="utf-8")
    text += '\n[memory_budget_mib]\nvalue = 1\nsource = "chosen by this project: a test"\n'
    profile.write_text(text.replace('name = "onnx"', 'name = "pocket"'), encoding="utf-8")
    line = arguments(shop, shop.root / "pocket", "--no-baseline", "--quant", "int8", targets=(str(profile),))
    refused(capsys, line, 3, "memory budget of target pocket", "remove more (--ratio)")
    # Another provider's memory is not what the CPU took here.
    assert cli.run([*line, "--execution-provider", "dml"]) == 0
    assert "memory budget is not judged" in capsys.readouterr().err


@pytest.mark.slow
def test_export_and_eval(shop: Workshop, both: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = shop.root / "exported"
    result = run_json(capsys, ["export", str(shop.model), "--format", "onnx", "--out", str(out)])
    assert result["quant"] == "fp32" and result["parity"]["passed"] is True
    assert result["files"][0] == "model.onnx" and FILES | {"SHA256SUMS"} == {path.name for path in out.iterdir()}
    text = ["--text", str(shop.text), "--threads", "1", "--window", "128"]
    scores = [
        run_json(capsys, ["eval", model, *text])
        for model in (str(shop.model), str(out), str(out / "model.onnx"), str(both / "baseline-gguf" / gguf_in(both)))
    ]
    assert len({score["n_bytes"] for score in scores}) == 1
    hugging_face, folder, file, llama = (score["bits_per_byte"] for score in scores)
    assert folder == file == pytest.approx(hugging_face, abs=1e-5)
    assert llama == pytest.approx(hugging_face, abs=0.02)
    compared = run_json(capsys, ["eval", str(out), "--against", str(shop.model), *text])
    assert compared["excess_bits_per_byte"] == pytest.approx(0, abs=1e-5) and compared["words"] == []
    assert compared["n_tokens"] == compared["against_n_tokens"] > 100
    refused(capsys, ["eval", str(out / "gone.onnx"), *text], 65, "no ONNX file at", "model.onnx in it")
    other = out / "other.onnx"
    other.write_bytes(b"a graph that genai_config.json does not name")
    refused(capsys, ["eval", str(other), *text], 2, "genai_config.json in its folder names model.onnx", "or its folder")
    for content in ({}, {"model": []}, {"model": {"context_length": "many"}}):
        (out / "genai_config.json").write_text(json.dumps(content), encoding="utf-8")
        capsys.readouterr()
        assert cli.run(["eval", str(out), *text]) == 65
        printed = capsys.readouterr().err
        assert printed.startswith(f"error: {out / 'genai_config.json'}: ") and "Traceback" not in printed
    line = ["export", str(shop.model), "--format", "onnx", "--imatrix", "x.gguf", "--out", str(shop.root / "y")]
    refused(capsys, line, 2, "--imatrix: applies only to GGUF", "--format gguf")
    line = ["export", str(shop.model), "--algo-config", "rtn", "--out", str(shop.root / "y")]
    refused(capsys, line, 2, "--algo-config: applies only to ONNX", "--format onnx")


def gguf_in(both: Path) -> str:
    return next((both / "baseline-gguf").glob("*.gguf")).name


@pytest.mark.slow
def test_a_damaged_cache_is_not_published(shop: Workshop, both: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = sha256_file(both / "onnx" / "model.onnx.data")
    data = next(path for path in shop.cache.rglob("model.onnx.data") if sha256_file(path) == wanted)
    before = data.read_bytes()
    data.write_bytes(bytes([before[0] ^ 1]) + before[1:])  # one bit, deep in a cache that is trusted by size
    line = arguments(shop, shop.root / "z", "--quant", "gguf=Q8_0", "--quant", "onnx=int4", targets=("gguf", "onnx"))
    try:
        refused(capsys, line, 65, "damaged in the cache", "delete the cache")
    finally:
        data.write_bytes(before)
    assert not (shop.root / "z").exists()


def test_a_missing_package_is_reported_before_any_work(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("exporters.onnx.artifact.ENGINES", ("onnx", "onnxruntime-of-another-planet"))
    line = arguments(shop, shop.root / "missing")
    refused(capsys, line, 69, "onnxruntime-of-another-planet is not installed", "compact-edge[onnx]")


def test_another_version_is_reported_before_any_work(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("exporters.onnx.artifact.version", lambda _package: "0.19.2")
    monkeypatch.setattr("compact_edge.building.pipeline.calibration_for", None)
    line = arguments(shop, shop.root / "missing")
    refused(capsys, line, 69, "onnxruntime-genai 0.19.2 is installed", "compact-edge[onnx]")


def test_a_missing_tokenizer_file_is_reported_before_any_work(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("compact_edge.building.pipeline.calibration_for", None)
    model = copy_checkpoint(shop.model, tmp_path / "m")
    (model / "tokenizer_config.json").unlink()
    line = [str(model) if word == str(shop.model) else word for word in arguments(shop, tmp_path / "out")]
    refused(capsys, line, 65, "tokenizer_config.json is missing", "copy the tokenizer's files into the checkpoint")
