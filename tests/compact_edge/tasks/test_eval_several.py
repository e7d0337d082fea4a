"""`eval` with several models, and every command with the parts of a split GGUF."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import gguf
import pytest

from compact_edge.cli import main as cli
from exporters.gguf.split import split_gguf
from exporters.gguf_writer.write import write_gguf
from tests.compact_edge.running import assert_error, run_json
from tests.compact_edge.small_tasks import write_tasks
from tests.small_builds import Workshop


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("several"))


@pytest.fixture(scope="module")
def folder(shop: Workshop) -> Path:
    """What `DIR/*.gguf` may match: a file, the parts of another, and an importance matrix."""
    folder = shop.root / "gguf"
    folder.mkdir()
    write_gguf(shop.model, folder / "a-F16.gguf", "F16")
    write_gguf(shop.model, shop.root / "b-Q8_0.gguf", "Q8_0")
    assert len(split_gguf(shop.root / "b-Q8_0.gguf", folder, 40_000)) > 1
    matrix = gguf.GGUFWriter(folder / "imatrix.gguf", "llama")
    matrix.add_type("imatrix")
    matrix.write_header_to_file()
    matrix.write_kv_data_to_file()
    matrix.close()
    return folder


@pytest.fixture(autouse=True)
def cached(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPACT_EDGE_CACHE", str(shop.cache))


def run_list(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, object]]:
    capsys.readouterr()
    assert cli.run([*arguments, "--json"]) == 0, capsys.readouterr().err
    result: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return result


def names(paths: Sequence[Path]) -> list[str]:
    return [str(path) for path in paths]


def test_each_model_once_in_one_table(shop: Workshop, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    every = names(sorted(folder.glob("*.gguf")))
    text = ("--text", str(shop.text), "--threads", "1")
    first, second = run_list(capsys, "eval", *every, *text)
    alone = run_json(capsys, "eval", every[0], *text)
    assert isinstance(alone, dict) and first == alone
    whole = run_json(capsys, "eval", str(shop.root / "b-Q8_0.gguf"), *text)
    assert {**second, "model": None} == {**whole, "model": None}
    assert second["model"] == str(folder / "b-Q8_0-00001-of-00003.gguf")
    assert cli.run(["eval", *every, *text]) == 0
    out, err = capsys.readouterr()
    head, *rows = out.splitlines()
    assert head.split() == ["MODEL", "BITS", "PER", "BYTE", "BYTES", "TOKENS", "WINDOW"]
    assert [(row.split()[0], row.split()[1]) for row in rows] == [
        (str(result["model"]), f"{result['bits_per_byte']:.4f}") for result in (first, second)
    ]
    assert "imatrix.gguf: an importance matrix, not a model; left out" in err


def test_a_checkpoint_and_its_file_side_by_side(
    shop: Workshop, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = run_list(capsys, "eval", str(shop.model), str(folder / "a-F16.gguf"), "--text", str(shop.text))
    assert one["bits_per_byte"] == pytest.approx(other["bits_per_byte"], abs=1e-2)
    assert one["n_bytes"] == other["n_bytes"]


def test_tasks_of_several_models(
    shop: Workshop, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    write_tasks(tasks)
    line = ("--tasks", "small_choice", "--include-path", str(tasks), "--threads", "1", "--limit", "2")
    models = [str(folder / "a-F16.gguf"), str(folder / "b-Q8_0-00002-of-00003.gguf")]
    found = run_list(capsys, "eval", *models, *line)
    assert [result["model"] for result in found] == models
    assert cli.run(["eval", *models, *line]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].split()[:3] == ["MODEL", "TASK", "METRIC"]
    assert {row.split()[0] for row in rows[1:]} == set(models)


def test_what_is_refused_before_any_work(
    shop: Workshop, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models, text = [str(folder / "a-F16.gguf"), str(shop.model)], ["--text", str(shop.text)]
    assert_error(capsys, ["eval", *models, *text, "--against", "tiny"], 2, "--against: takes one MODEL", "one MODEL")
    torn = tmp_path / "torn.gguf"
    torn.write_bytes((folder / "a-F16.gguf").read_bytes()[:-200])
    assert_error(capsys, ["eval", *models, str(torn), *text], 65, "torn.gguf: the file is incomplete")
    matrices = [str(shutil.copy(folder / "imatrix.gguf", tmp_path / name)) for name in ("x.gguf", "y.gguf")]
    assert_error(capsys, ["eval", *matrices, *text], 65, "none of the 2 files is a model")
    assert_error(capsys, ["eval", *text], 2, "MODEL")


def test_results_before_a_failure_are_shown(
    shop: Workshop, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "checkpoint"
    wrong.mkdir()
    assert cli.run(["eval", str(folder / "a-F16.gguf"), str(wrong), "--text", str(shop.text), "--threads", "1"]) == 65
    out, err = capsys.readouterr()
    assert str(folder / "a-F16.gguf") in out and "config.json" in err


def test_inspect_prune_export_and_verify_take_any_part(
    shop: Workshop, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = str(folder / "b-Q8_0-00002-of-00003.gguf")
    whole = run_json(capsys, "inspect", str(shop.root / "b-Q8_0.gguf"))
    assert run_json(capsys, "inspect", named)["parameters"] == whole["parameters"]
    sizes = ("--vocab-size", "380", "--vocab-rank", "merges", "--no-cache")
    pruned = run_json(capsys, "prune", named, "--out", str(tmp_path / "pruned"), *sizes)
    assert pruned["vocab_size"] == 380
    assert cli.run(["export", named, "--quant", "F32", "--out", str(tmp_path / "out")]) == 0
    assert cli.run(["verify", str(tmp_path / "out")]) == 0
