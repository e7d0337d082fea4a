"""`compact-edge report` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compact.base.files import read_sums
from compact_edge.cli.main import run
from runtime_bench.report.write import write_report
from tests.runtime_bench import synthetic_run


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    write_report(first, synthetic_run.facts(), synthetic_run.samples(6))
    write_report(
        second,
        synthetic_run.facts(device={"model": "Pixel 8"}, status="partial", reason="the link was lost"),
        synthetic_run.samples(2),
    )
    return first, second


def test_one_run_is_a_table(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(runs[0])]) == 0
    shown = capsys.readouterr().out
    assert "smollm2-135m-compact Q8_0 on Raspberry Pi 5" in shown
    assert "all 4 budgets of raspberry-pi-5 met" in shown
    assert any(line.startswith("File size") and "115.5 MB" in line for line in shown.splitlines())


def test_several_runs_and_files(runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run(["report", str(runs[0]), str(runs[1] / "report.json"), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "not ranked" in shown
    assert "the link was lost" in shown
    assert sorted(read_sums(out)) == ["report.html", "report.json", "report.md"]
    assert json.loads((out / "report.json").read_text("utf-8"))["schema"] == "compact-edge/bench-comparison/1"
    assert run(["verify", str(out)]) == 0
    assert run(["report", str(runs[0]), "--out", str(out)]) == 2
    assert run(["report", str(runs[0]), "--out", str(out), "--force"]) == 0
    assert json.loads((out / "report.json").read_text("utf-8"))["schema"] == "compact-edge/bench/1"


def test_json(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", *map(str, runs), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["device"] for entry in found["apart"]] == ["Pixel 8"]


def test_what_is_no_run_ends_with_65(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run(["report", str(tmp_path / "none"), "--out", str(out)]) == 65
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 2
    assert not out.exists()


def test_force_alone_is_refused(runs: tuple[Path, Path]) -> None:
    assert run(["report", str(runs[0]), "--force"]) == 2


def test_force_replaces_neither_a_run_that_is_read_nor_what_is_no_output(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    raw = (runs[0] / "samples.jsonl").read_bytes()
    for named in ("first", "first/report.json"):
        assert run(["report", named, "--out", "first", "--force"]) == 2
    # The folder that holds the runs, as a home directory might.
    assert run(["report", "first", "--out", str(tmp_path), "--force"]) == 2
    home = tmp_path / "home"
    (home / "report").mkdir(parents=True)
    (home / "report" / "SHA256SUMS").write_text("", encoding="utf-8")
    assert run(["report", "first", "--out", str(home), "--force"]) == 2
    assert "is not an earlier output" in capsys.readouterr().err
    assert (runs[0] / "samples.jsonl").read_bytes() == raw
    assert (home / "report" / "SHA256SUMS").exists()
