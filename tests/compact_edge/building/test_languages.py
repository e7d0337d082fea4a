"""`--languages`, `--vocab-coverage` and `--vocab-rank`: files that pass the gate, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compact_edge.cli import main as cli
from tests.checkpoints import TEXTS
from tests.exporters.onnx_graphs import without_child
from tests.sentencepiece_models import tokenizer_files, tokenizer_json
from tests.small_builds import Workshop

pytest.importorskip("wordfreq", reason="wordfreq is not installed (the extra `languages`)")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A Gemma layout whose tokenizer has characters of many scripts and byte fallback."""
    ids = {"bos_token_id": 1, "pad_token_id": 0}
    root = tmp_path_factory.mktemp("shop")
    shop = Workshop(root, family="gemma3_text", tokenizer=tokenizer_json("gemma"), **ids)
    for name, content in tokenizer_files("gemma").items():
        (shop.model / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    # English, so that the default lets other scripts go.
    shop.calibration.write_text("\n".join([TEXTS[0], TEXTS[1]] * 16), encoding="utf-8")
    return shop


@pytest.fixture(autouse=True)
def own_cache(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPACT_EDGE_CACHE", str(shop.cache))
    # Counting all words of a language takes seconds.
    monkeypatch.setattr("compact.vocabulary.language_use._MOST_WORDS", 10_000)
    without_child(monkeypatch)


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert cli.run([*arguments, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("target", ["gguf", "onnx"])
def test_a_file_with_fewer_characters_passes_its_gate(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    """Smaller than all characters that merge order would keep; the gate compares ids on texts of every script."""
    smallest = run_json(capsys, "inspect", str(shop.model), "--languages", "en", "--vocab-size", "1000")
    size = smallest["pruned"]["smallest_vocab_size"] + 60
    options = ("--languages", "en,code", "--vocab-size", str(size), "--no-baseline")
    quant = "F32" if target == "gguf" else "fp32"
    result = run_json(capsys, *shop.build(tmp_path / "out", *options, quant=quant, target=target))
    assert result["formats"][target]["parity"]["passed"]
    assert result["vocabulary"] == {"ranking": "languages", "languages": ["en", "code"], "scripts": ["Latn"]}
    (plan,) = (tmp_path / "out").rglob("plan.json")
    assert len(json.loads(plan.read_text(encoding="utf-8"))["kept_token_ids"]) == size
    assert cli.run(["verify", str(tmp_path / "out")]) == 0


def test_the_summary_says_for_whom_the_vocabulary_was_kept(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["prune", str(shop.model), "--vocab-size", "700", "--calibration", str(shop.calibration)]
    assert cli.run([*common, "--out", str(tmp_path / "assumed")]) == 0
    assumed = capsys.readouterr().out
    assert "vocabulary kept for: " in assumed and "(by scripts of the calibration text, then merge order)" in assumed
    costly = next(line for line in assumed.splitlines() if line.startswith("these need more tokens: "))
    assert "Russian" in costly
    assert cli.run([*common, "--languages", "en", "--languages", "de", "--out", str(tmp_path / "named")]) == 0
    named = capsys.readouterr().out
    assert "vocabulary kept for: en, de (--languages)" in named
    assert "to keep " in named and ": --languages en,de," in named
    assert cli.run([*common, "--vocab-rank", "merges", "--out", str(tmp_path / "merges")]) == 0
    assert "(by merge order)" in capsys.readouterr().out


def test_coverage_is_a_size(shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The size of 90% is between those of the curve that `inspect` prints, and keeps no less than it says."""
    shown = run_json(capsys, "inspect", str(shop.model), "--languages", "en")
    curve = [(row["vocab_size"], row["coverage"]) for row in shown["vocabulary_sizes"]]
    assert curve[0][0] == shown["vocab_size"] and curve[0][1] == pytest.approx(1.0)
    rates = [row["tokens_per_character"] for row in shown["vocabulary_sizes"]]
    assert rates == sorted(rates)
    line = ["prune", str(shop.model), "--languages", "en", "--method", "magnitude"]
    made = run_json(capsys, *line, "--vocab-coverage", "90%", "--out", str(tmp_path / "a"))
    again = run_json(capsys, *line, "--vocab-size", str(made["vocab_size"]), "--out", str(tmp_path / "b"))
    plans = [json.loads((tmp_path / name / "plan.json").read_text(encoding="utf-8")) for name in "ab"]
    assert plans[0]["kept_token_ids"] == plans[1]["kept_token_ids"]
    assert made["parameters_after"] == again["parameters_after"]
    assert cli.run(["inspect", str(shop.model), "--languages", "en"]) == 0
    assert "COVERAGE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--languages", "klingon-english"), "--languages klingon-english: not a language code"),
        (("--languages", "en,en"), "--languages en: given twice"),
        (("--languages", "en", "--vocab-rank", "merges"), "exclude each other"),
        (("--vocab-coverage", "99%"), "--vocab-coverage: needs --languages or --vocab-corpus"),
        (("--languages", "en", "--vocab-coverage", "much"), "expected a share above 0% and up to 100%"),
        (("--languages", "en", "--vocab-coverage", "9", "--vocab-size", "800"), "expected a share"),
        (("--languages", "en", "--vocab-coverage", "90%", "--vocab-size", "800"), "exclude each other"),
        (("--languages", "en", "--vocab-coverage", "90%", "--ratio", "0.2"), "exclude each other"),
    ],
)
def test_what_is_refused_before_any_work(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    assert cli.run(["prune", str(shop.model), *options, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["inspect", "qwen2.5-0.5b", "--languages", "en"]) == 2
    assert "no tokenizer" in capsys.readouterr().err
    assert cli.run(["inspect", "--all", "--languages", "en"]) == 2
    assert "one MODEL" in capsys.readouterr().err
