"""Tables of sizes on any terminal."""

from __future__ import annotations

import sys

import pytest

from compact_edge.building.search_report import print_table

HEADER = ("", "vocab_size", "intermediate_size", "parameters", "file", "stdlib", "mean", "worst")
ROW = ("unpruned", "151936", "4864", "494.03M", "397.81 MB", "0.853", "+10.3%", "+12.7%")


@pytest.mark.parametrize("columns", ["60", "80", "200", None])
def test_no_figure_is_cut_short(
    columns: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_table("What each size costs", HEADER, [ROW], ["a note"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if "151936" in line] == [" ".join(ROW).split()]
    assert not any("…" in line for line in lines)
    assert lines[-1] == "a note"
