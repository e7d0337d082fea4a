"""What `--force` may replace: an earlier output, and nothing else that a user has."""

from __future__ import annotations

from pathlib import Path

import pytest

from compact.base.errors import OutputExistsError, UsageError
from compact_edge.output import check_output


def summed(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "SHA256SUMS").write_text("", encoding="utf-8")


@pytest.mark.parametrize("names", [("gguf",), ("onnx", "baseline"), ("gguf", "onnx", "baseline-gguf", "baseline-onnx")])
def test_the_folders_of_a_build_are_an_earlier_output(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        summed(tmp_path / "out" / name)
    check_output(tmp_path / "out", force=True)


def test_an_empty_directory_and_one_with_sums_are_replaced(tmp_path: Path) -> None:
    check_output(tmp_path, force=True)
    summed(tmp_path / "report")
    check_output(tmp_path / "report", force=True)


@pytest.mark.parametrize("output", ["report", "gguf", "model-bench"])
def test_a_project_that_holds_an_output_is_none_itself(tmp_path: Path, output: str) -> None:
    summed(tmp_path / output)
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(OutputExistsError, match="is not an earlier output"):
        check_output(tmp_path, force=True)


def test_a_folder_of_reports_is_none(tmp_path: Path) -> None:
    summed(tmp_path / "report")
    with pytest.raises(OutputExistsError, match="is not an earlier output"):
        check_output(tmp_path, force=True)


def test_an_input_is_never_replaced(tmp_path: Path) -> None:
    summed(tmp_path / "run")
    for read in (tmp_path / "run", tmp_path / "run" / "report.json"):
        with pytest.raises(UsageError, match="reads"):
            check_output(tmp_path / "run", force=True, inputs=[read])
