"""`compact-edge inspect`: parameters by part, what a cut takes, the table of models, and which of them fit a device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compact.architectures.published import published_models
from compact.pruning.budget import count_parts
from compact.sources.model_source import open_directory
from compact_edge.cli import main as cli
from tests.checkpoints import model_config
from tests.small_builds import Workshop


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("shop"), tie_word_embeddings=False)


@pytest.fixture(autouse=True)
def own_cache(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPACT_EDGE_CACHE", str(shop.cache))


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert cli.run([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def fails(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    capsys.readouterr()
    assert cli.run(["inspect", *arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    return err


def test_a_configuration_alone_says_what_the_checkpoint_says(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_bytes((shop.model / "config.json").read_bytes())
    whole = run_json(capsys, "inspect", str(shop.model), "--ratio", "0.3")
    alone = run_json(capsys, "inspect", str(tmp_path), "--ratio", "0.3")
    assert (whole["counted_from"], alone["counted_from"]) == ("tensors", "config.json")
    for key in ("parameters", "vocabulary", "shares", "parameters_per_token", "parameters_per_channel"):
        assert whole[key] == alone[key]
    assert whole["vocabulary"]["embedding"] == whole["vocabulary"]["lm_head"] == whole["parameters"]["vocabulary"] // 2
    assert sum(whole["shares"].values()) == pytest.approx(1.0, abs=1e-5)
    # How small the vocabulary may get is in the tokenizer.
    assert whole["pruned"]["smallest_vocab_size"] > 256
    assert alone["pruned"]["smallest_vocab_size"] is None


def test_the_sizes_are_those_of_a_build(shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = run_json(capsys, "inspect", str(shop.model), "--ratio", "0.25")["pruned"]
    out = tmp_path / "pruned"
    sizes = ("--ratio", "0.25", "--split", "proportional")
    calibration = ("--calibration", str(shop.calibration), "--calibration-tokens", "256")
    assert cli.run(["prune", str(shop.model), *sizes, *calibration, "--out", str(out)]) == 0
    built = open_directory(out, name="m", origin="m")
    assert (built.vocab_size, built.intermediate_size) == (shown["vocab_size"], shown["intermediate_size"])
    assert count_parts(built.tensors, built.config).as_dict() == shown["parameters"]
    assert shown["ratio"] == pytest.approx(0.25, abs=0.006)


def test_explicit_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ("--vocab-size", "100000", "--intermediate-size", "4096")
    result = run_json(capsys, "inspect", "llama-3.2-1b", *sizes)
    parts, after = result["parameters"], result["pruned"]["parameters"]
    assert parts["total"] == 1_235_814_400
    assert after["vocabulary"] == 100_000 * 2048
    assert after["ffn"] == parts["ffn"] // 2
    assert after["attention"] == parts["attention"]
    assert cli.run(["inspect", "qwen2.5-7b", *sizes]) == 0
    out = capsys.readouterr().out
    assert "  LM head" in out and "not known without the tokenizer" in out
    assert cli.run(["inspect", "gemma-3-270m"]) == 0
    assert "LM head" not in capsys.readouterr().out


def test_sizes_that_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    assert "exclude each other" in fails(capsys, 2, "smollm2-360m", "--ratio", "0.2", "--vocab-size", "1000")
    assert "not reachable" in fails(capsys, 2, "smollm2-360m", "--ratio", "0.95")
    assert "1 to 2560" in fails(capsys, 2, "smollm2-360m", "--intermediate-size", "4000")
    assert "this model accepts" in fails(capsys, 2, "smollm2-360m", "--vocab-size", "50000")


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    rows = run_json(capsys, "inspect", "--list")
    assert [row["name"] for row in rows] == [model.name for model in published_models()]
    assert cli.run(["inspect", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [row["name"] for row in rows]
    shares = {row["model"]: row["shares"] for row in run_json(capsys, "inspect", "--all")}
    # The finding of the COMPACT paper.
    for small, large in (("gemma-3-270m", "gemma-3-27b"), ("qwen2.5-0.5b", "qwen2.5-72b")):
        assert shares[small]["vocabulary"] > 4 * shares[large]["vocabulary"]
        assert shares[small]["ffn"] < shares[large]["ffn"]
    assert cli.run(["inspect", "--all"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[0] == "qwen2.5-0.5b"


def test_the_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (the extra `plot`)")
    assert cli.run(["inspect", "--all", "--plot", str(tmp_path / "a.svg")]) == 0
    assert cli.run(["inspect", "--all", "--plot", str(tmp_path / "b.svg")]) == 0
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert cli.run(["inspect", "--all", "--plot", str(tmp_path / "a.png")]) == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.svg", "b.svg"]
    assert "neither .svg nor .png" in fails(capsys, 2, "--all", "--plot", str(tmp_path / "a.gif"))
    assert fails(capsys, 74, "--all", "--plot", str(tmp_path / "nowhere" / "a.svg"))


def test_what_goes_with_what(capsys: pytest.CaptureFixture[str]) -> None:
    assert "MODEL is missing" in fails(capsys, 2)
    assert "2 models without --target" in fails(capsys, 2, "tiny", "smollm2-360m")
    assert "add --target" in fails(capsys, 2, "smollm2-360m", "--quant", "Q8_0")
    assert "add --target" in fails(capsys, 2, "smollm2-360m", "--context", "4096")
    assert "--list cannot be combined with" in fails(capsys, 2, "--list", "tiny")
    assert "--all cannot be combined with" in fails(capsys, 2, "--all", "--ratio", "0.2")
    assert "add --all" in fails(capsys, 2, "tiny", "--plot", "a.svg")
    assert "chooses the sizes itself" in fails(capsys, 2, "tiny", "--target", "phone-arm64", "--ratio", "0.2")
    assert "only for llama.cpp" in fails(capsys, 2, "smollm2-360m", "--target", "phone-arm64-onnx")
    assert "not known" in fails(capsys, 2, "smollm2-360m", "--target", "phone-arm64", "--quant", "Q9")
    assert "smollm2-360m" in fails(capsys, 65, "smollm2-361m")


def test_which_models_fit_a_phone(capsys: pytest.CaptureFixture[str]) -> None:
    result = run_json(capsys, "inspect", "--target", "phone-arm64", "smollm2-360m", "qwen2.5-1.5b", "llama-3-70b")
    memory = result["target"]["memory_budget_mib"]["value"] * 1024 * 1024
    storage = result["target"]["storage_budget_mib"]["value"] * 1024 * 1024
    small, middle, large = result["models"]
    assert small["fits"] and small["pruned"] is None and small["unpruned"]["memory"]["total"] <= memory
    assert not middle["fits"] and middle["unpruned"]["memory"]["total"] > memory
    cut = middle["pruned"]
    assert cut["memory"]["total"] <= memory and cut["file_bytes"] <= storage
    assert cut["vocab_size"] < 151936 and cut["intermediate_size"] % 32 == 0
    assert cut["ratio"] == pytest.approx(middle["smallest_ratio"], abs=0.006)
    # A hundredth less does not fit: that is what smallest means.
    sizes = run_json(capsys, "inspect", "qwen2.5-1.5b", "--ratio", str(middle["smallest_ratio"]))["pruned"]
    assert (sizes["vocab_size"], sizes["intermediate_size"]) == (cut["vocab_size"], cut["intermediate_size"])
    assert not large["fits"] and large["smallest_ratio"] is None
    assert cli.run(["inspect", "--target", "phone-arm64", "smollm2-360m", "llama-3-70b"]) == 0
    out = capsys.readouterr().out
    assert "memory at most 1,536 MiB" in out and "none" in out and "estimates" in out


def test_type_and_context_of_the_users_own(capsys: pytest.CaptureFixture[str]) -> None:
    line = ("inspect", "gemma-2-2b", "--target", "laptop-x86")
    (usual,) = run_json(capsys, *line)["models"]
    (wide,) = run_json(capsys, *line, "--quant", "Q8_0", "--context", "16384")["models"]
    assert (usual["context"], wide["context"]) == (4096, 8192)  # the model has no more positions
    assert wide["quant"] == "Q8_0"
    assert wide["unpruned"]["file_bytes"] > 1.5 * usual["unpruned"]["file_bytes"]
    assert wide["unpruned"]["memory"]["kv_cache"] > usual["unpruned"]["memory"]["kv_cache"]
    assert cli.run([*line, "--context", "16384"]) == 0
    assert "a shorter context: gemma-2-2b (8,192)" in capsys.readouterr().out


def test_a_checkpoint_with_its_tokenizer_is_sized_as_it_is_built(
    shop: Workshop, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (found,) = run_json(capsys, "inspect", str(shop.model), "--target", "gguf", "--quant", "Q8_0")["models"]
    assert found["tokenizer_bytes"] == "counted"
    assert found["fits"] and found["smallest_ratio"] is None
    assert cli.run(["export", str(shop.model), "--quant", "Q8_0", "--out", str(tmp_path / "e")]) == 0
    (file,) = (tmp_path / "e").rglob("*.gguf")
    assert 0 <= found["unpruned"]["file_bytes"] - file.stat().st_size < 600


def test_a_target_without_budgets(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(model_config("llama", 500)), encoding="utf-8")
    assert cli.run(["inspect", str(tmp_path), "--target", "gguf"]) == 0
    out = capsys.readouterr().out
    assert "no memory budget, no storage budget" in out
