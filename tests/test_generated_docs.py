"""Tables in the docs are what their script makes of the recorded results."""

from __future__ import annotations

import importlib
import json

import pytest

from benchmarks import families, tokenizer_parity
from benchmarks.common import DOCS, recorded, with_table
from compact.families import FAMILIES


def test_the_table_of_families() -> None:
    results = families.recorded()
    text = families.DOCS.read_text(encoding="utf-8")
    assert families.docs_with_table(text, results) == text
    assert [result["model"] for result in results if not result["passed"]] == []


def test_every_family_is_documented_and_was_checked() -> None:
    text = families.DOCS.read_text(encoding="utf-8")
    checked = {result["architecture"] for result in families.recorded()}
    for family in FAMILIES:
        assert f"`{family.architecture}`" in text
        assert family.architecture in checked


def test_the_table_of_tokenizers() -> None:
    recorded = json.loads((families.RESULTS / "tokenizers.json").read_text(encoding="utf-8"))
    text = tokenizer_parity.DOCS.read_text(encoding="utf-8")
    assert tokenizer_parity.docs_with_table(text, recorded["results"], recorded["refused"]) == text
    assert [result["name"] for result in recorded["results"] if result["failures"]] == []


@pytest.mark.parametrize(
    ("script", "name"),
    [
        ("onnx_types", "onnx-types-SmolLM2-135M-Instruct"),
        ("formats", "formats-SmolLM2-135M-Instruct"),
        ("onnx_families", "onnx-families"),
        ("onnx_export", "onnx-export"),
    ],
)
def test_the_tables_of_onnx(script: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(families.ROOT / "benchmarks"))  # as when the script is run
    result = recorded(name)
    rows = importlib.import_module(f"benchmarks.{script}").show(result.get("models") or result["rows"])
    text = (DOCS / "onnx.md").read_text(encoding="utf-8")
    assert with_table(text, script, rows) == text


def test_the_table_of_calibration_mixes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(families.ROOT / "benchmarks"))
    script = importlib.import_module("benchmarks.calibration_mixes")
    text = (DOCS / "quality.md").read_text(encoding="utf-8")
    assert with_table(text, "calibration_mixes", script.show(recorded(script.NAME)["cells"])) == text


def test_every_family_was_checked_in_onnx_and_passed() -> None:
    results = recorded("onnx-families")["models"]
    assert {family.architecture for family in FAMILIES} == {result["architecture"] for result in results}
    assert [result["model"] for result in results if not result["passed"]] == []


def test_the_tables_of_the_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(families.ROOT / "benchmarks"))
    script = importlib.import_module("benchmarks.bench_report")
    runs = recorded(script.NAME)["runs"]
    for path, shown in ((DOCS / "bench.md", runs), (DOCS.parent / "README.md", runs[:1])):
        text = path.read_text(encoding="utf-8")
        assert with_table(text, script.SCRIPT, script.show(shown)) == text
    checks = importlib.import_module("benchmarks.bench_checks")
    text = (DOCS / "bench.md").read_text(encoding="utf-8")
    assert with_table(text, checks.SCRIPT, checks.show()) == text
