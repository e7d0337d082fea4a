"""Tables in the docs are what their script makes of the recorded results."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.common import DOCS, RESULTS, ROOT, recorded, with_table
from benchmarks.formats import families, tokenizer_parity
from compact.architectures.table import FAMILIES


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
    recorded = json.loads((RESULTS / "tokenizers.json").read_text(encoding="utf-8"))
    text = tokenizer_parity.DOCS.read_text(encoding="utf-8")
    assert tokenizer_parity.docs_with_table(text, recorded["results"], recorded["refused"]) == text
    assert [result["name"] for result in recorded["results"] if result["failures"]] == []


@pytest.mark.parametrize(
    ("document", "script", "name"),
    [
        ("onnx.md", "formats.onnx_types", "onnx-types-SmolLM2-135M-Instruct"),
        ("size.md", "formats.comparison", "formats-SmolLM2-135M-Instruct"),
        ("onnx.md", "formats.onnx_families", "onnx-families"),
        ("performance.md", "scale.onnx_export", "onnx-export"),
    ],
)
def test_the_tables_of_onnx(document: str, script: str, name: str) -> None:
    result = recorded(name)
    rows = importlib.import_module(f"benchmarks.{script}").show(result.get("models") or result["rows"])
    text = (DOCS / document).read_text(encoding="utf-8")
    assert with_table(text, script, rows) == text


@pytest.mark.parametrize(
    ("document", "script", "name", "show"),
    [
        ("quality.md", "quality.patterns", "patterns", lambda m, result: m.show(result["cells"])),
        ("quality.md", "quality.splits", "splits", lambda m, result: m.show(result["cells"])),
        (
            "quality.md",
            "quality.compare_methods",
            "compare-methods",
            lambda m, result: m.document_part(result["cells"]),
        ),
        ("quality.md", "quality.answers", "answers", lambda m, result: m.table_of(result["cells"])),
        ("quality.md", "quality.task_accuracy", "task-accuracy", lambda m, result: m.table_of(result["cells"])),
        ("quality.md", "quality.calibration_mixes", "calibration-mixes", lambda m, result: m.show(result["cells"])),
        ("performance.md", "scale.prune_scale", "prune-scale", lambda m, result: m.show(result)),
    ],
)
def test_the_tables_of_quality_and_performance(
    document: str, script: str, name: str, show: Callable[[Any, dict[str, Any]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (DOCS / document).read_text(encoding="utf-8")
    if not (RESULTS / f"{name}.json").is_file():
        assert with_table(text, script, "").split() == text.split(), "a table of no recorded result"
        pytest.skip(f"{script} has not been run yet")
    rows = show(importlib.import_module(f"benchmarks.{script}"), recorded(name))
    assert with_table(text, script, rows) == text


def test_the_plot_of_methods() -> None:
    script = importlib.import_module("benchmarks.quality.compare_methods")
    if not (RESULTS / f"{script.RESULT}.json").is_file():
        pytest.skip("compare_methods.py has not been run yet")
    assert (DOCS / script.PLOT).read_text(encoding="utf-8") == script.plot(recorded(script.RESULT)["cells"])


def test_the_tables_of_recovery() -> None:
    script = importlib.import_module("benchmarks.quality.recovery")
    page = (DOCS / "quality.md").read_text(encoding="utf-8")
    assert f"]({script.PICTURE})" in page
    assert (DOCS / script.PICTURE).read_text(encoding="utf-8") == script.picture(script.results())
    for mark, rows in script.tables().items():
        assert with_table(page, mark, rows) == page


def test_the_front_is_that_of_the_recorded_files() -> None:
    script = importlib.import_module("benchmarks.quality.front_tables")
    page = (DOCS / script.PAGE).read_text(encoding="utf-8")
    for name, drawing in script.pictures().items():
        assert f"]({name})" in page
        assert (DOCS / name).read_text(encoding="utf-8") == drawing
    for mark, rows in script.tables().items():
        assert with_table(page, mark, rows) == page
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_table(readme, "quality.front_budgets", script.budgets_table(script.README_MODELS)) == readme


def test_every_family_was_checked_in_onnx_and_passed() -> None:
    results = recorded("onnx-families")["models"]
    written = {family.architecture for family in FAMILIES if family.onnx_refusal is None}
    assert written == {result["architecture"] for result in results}
    assert [result["model"] for result in results if not result["passed"]] == []


def test_the_tables_of_the_bench() -> None:
    script = importlib.import_module("benchmarks.device.bench_report")
    runs = recorded(script.NAME)["runs"]
    for path, shown in ((DOCS / "performance.md", runs), (DOCS.parent / "README.md", runs[:1])):
        text = path.read_text(encoding="utf-8")
        assert with_table(text, script.SCRIPT, script.show(shown)) == text
    checks = importlib.import_module("benchmarks.device.bench_agreement")
    text = (DOCS / "bench.md").read_text(encoding="utf-8")
    assert with_table(text, checks.SCRIPT, checks.show()) == text


@pytest.mark.parametrize("script", ["pages.parameters", "pages.target_fits"])
def test_the_tables_of_published_models(script: str) -> None:
    text = (DOCS / "size.md").read_text(encoding="utf-8")
    assert with_table(text, script, importlib.import_module(f"benchmarks.{script}").show()) == text


def test_the_table_of_memory() -> None:
    script = importlib.import_module("benchmarks.device.memory_estimate")
    text = (DOCS / "size.md").read_text(encoding="utf-8")
    assert with_table(text, script.SCRIPT, script.show(recorded(script.NAME)["rows"])) == text


def test_the_picture_of_parameters() -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed (the extra `plot`)")
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    if f"matplotlib=={matplotlib.__version__}" not in pinned:
        pytest.skip("another version of matplotlib draws other bytes")
    from compact_edge.inspect.parameter_plot import draw
    from compact_edge.inspect.parameter_table import counted_models

    assert (DOCS / "parameters.svg").read_bytes() == draw(counted_models(), "svg")


def test_the_tables_of_the_guides_and_of_what_is_proved() -> None:
    from benchmarks.pages import guide_sizes, proof

    models = recorded(guide_sizes.NAME)["models"]
    for guide in guide_sizes.GUIDES:
        text = (DOCS / guide.document).read_text(encoding="utf-8")
        assert with_table(text, guide_sizes.SCRIPT, guide_sizes.show(models[guide.document])) == text
    for path, prefix in proof.DOCUMENTS.items():
        text = path.read_text(encoding="utf-8")
        assert with_table(text, proof.SCRIPT, proof.show(prefix)) == text
