"""What `compact-edge bench` leaves on a terminal of 80 columns, and in a log."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from compact_edge.bench.pipeline import BenchResult
from compact_edge.bench.summary import print_bench, print_document
from runtime_bench.report.document import make_document
from tests.runtime_bench import synthetic_run


def on_terminal(document: dict[str, Any], width: int = 80) -> list[str]:
    """The lines that a terminal of this width shows."""
    stream = io.StringIO()
    print_document(document, Console(file=stream, width=width, force_terminal=True, color_system=None, highlight=False))
    return stream.getvalue().splitlines()


def row(lines: list[str], name: str) -> list[str]:
    found = [line for line in lines if line.startswith(f"{name}  ")]
    assert len(found) == 1, found
    return found[0].split()


def test_a_run_on_80_columns() -> None:
    document = make_document(synthetic_run.facts(), synthetic_run.samples())
    lines = on_terminal(document)
    assert max(map(len, lines)) <= 80
    assert row(lines, "File size") == ["File", "size", "144.8", "115.5", "MB", "0.80", "(exact)", "better"]
    assert row(lines, "Decode, depth 1024")[3:6:2] == ["58.0", "tok/s"]
    assert row(lines, "Decode, depth 1024")[-1] == "better"
    assert row(lines, "Bits per byte")[-1] == "worse"
    # One line a metric: nothing wraps, and nothing is cut.
    shown = [metric for metric in document["metrics"] if metric["group"] != "itl"]
    rules = [number for number, line in enumerate(lines) if line.startswith("──")]
    assert lines[rules[0] + 1 : rules[0] + 2 + len(shown)].index("") == len(shown)
    assert not any("…" in line for line in lines)


def test_budgets_show_what_was_measured_and_the_limit() -> None:
    budgets = tuple(
        replace(budget, limit=1e6) if budget.name == "memory" else budget for budget in synthetic_run.facts().budgets
    )
    lines = on_terminal(make_document(synthetic_run.facts(budgets=budgets), synthetic_run.samples()))
    assert row(lines, "memory")[2:] == ["at", "most", "1.0", "MB", "EXCEEDED"]
    assert row(lines, "storage") == ["storage", "115.5", "at", "most", "2,147.5", "MB", "met"]
    assert row(lines, "decode")[2:] == ["at", "least", "5.00", "tok/s", "met"]
    assert max(map(len, lines)) <= 80


def test_a_budget_that_was_not_judged_says_why() -> None:
    lines = on_terminal(make_document(synthetic_run.facts(emulated=True), synthetic_run.samples()))
    assert row(lines, "TTFT")[-2:] == ["not", "judged"]
    assert any(line.startswith("TTFT, decode not judged: the device is an emulator") for line in lines)


def test_few_pairs_are_said_once() -> None:
    lines = on_terminal(make_document(synthetic_run.facts(), synthetic_run.samples(1)))
    assert max(map(len, lines)) <= 80
    assert sum("fewer than 6 pairs" in line for line in lines) == 1
    assert not any("n = 1" in line or "1 pairs" in line for line in lines)
    assert len(row(lines, "Peak RSS")) == 6  # two words, two figures, a unit, a ratio and nothing behind it
    assert any(line.startswith("1 pair, batch size 1, 4 threads") for line in lines)


@pytest.mark.parametrize("width", [60, 80])
def test_long_names_give_way_to_figures(width: int) -> None:
    facts = synthetic_run.facts()
    prompts = tuple(replace(prompt, name="a" * 30 + prompt.name) for prompt in facts.prompts)
    samples = synthetic_run.samples(
        change=lambda sample: replace(
            sample,
            generations=tuple(
                replace(made, name="a" * 30 + made.name) if made.depth is None else made for made in sample.generations
            ),
        )
    )
    lines = on_terminal(make_document(replace(facts, prompts=prompts), samples), width)
    assert max(map(len, lines)) <= width
    cut = [line for line in lines if line.startswith("TTFT, ")]
    assert len(cut) == 4
    assert all("…" in line and line.rstrip().endswith("better") for line in cut)


def test_a_file_against_itself_is_said() -> None:
    facts = synthetic_run.facts()
    same = replace(facts, subjects=dict.fromkeys(facts.subjects, facts.subjects["pruned"]))
    assert "both sides are the same file" in on_terminal(make_document(same, synthetic_run.samples()))


def test_hostile_names_do_not_reach_the_screen() -> None:
    facts = synthetic_run.facts(target="a\x1b[31m", notes=("b\x1b[2J",), device={"model": "c\x1b[0m"})
    assert "\x1b" not in "".join(on_terminal(make_document(facts, synthetic_run.samples())))


def test_a_log_keeps_whole_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = make_document(synthetic_run.facts(notes=("word " * 60,)), synthetic_run.samples())
    print_bench(BenchResult(document, tmp_path))
    lines = capsys.readouterr().out.splitlines()
    assert document["summary"] in lines
    assert any(line.startswith("note: word") and len(line) > 300 for line in lines)
    assert lines[-1] == f"report: {tmp_path / 'report.html'}"
