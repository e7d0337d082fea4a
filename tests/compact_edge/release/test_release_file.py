"""release.toml: what is refused and how, and which cells it makes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from compact.base.errors import CompactEdgeError, DataError, UsageError
from compact_edge.cli import main as cli
from compact_edge.release.cells import Cell, Cells, matrix
from compact_edge.release.manifest import read_release
from targets.profile import profile_names

ROOT = Path(__file__).resolve().parents[3]

GOOD = """
schema = 1
owner = "somebody"
targets = ["gguf", "phone-arm64", "laptop-x86"]
bench = { repetitions = 4, seconds = 30 }

[quants]
gguf = ["Q4_K_M", "Q8_0"]

[[model]]
model = "tiny"
ratios = [0.3, 0.2]
calibration = ["stdlib", "own.txt"]
calibration_tokens = 4096
method = "repair"
"""


def written(folder: Path, text: str) -> Path:
    (folder / "own.txt").write_text("some text\n" * 100, encoding="utf-8")
    path = folder / "release.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_what_a_file_says_is_what_is_asked_of_the_plan(tmp_path: Path) -> None:
    release = read_release(written(tmp_path, GOOD))
    (entry,) = release.models
    options = entry.pruning(0.3, 256)
    assert (options.ratio, options.method, options.calibration_tokens, options.channel_grid) == (
        0.3,
        "repair",
        4096,
        256,
    )
    assert options.calibration == ("stdlib", str(tmp_path / "own.txt"))
    assert entry.ratios == (0.2, 0.3)
    assert release.bench is not None
    assert (release.bench.repetitions, release.bench.seconds) == (4, 30.0)


@pytest.mark.parametrize(
    ("change", "place", "hint"),
    [
        (("schema = 1", "schema = 2"), "'schema'", "schema = 1"),
        (("schema = 1", "schema = true"), "'schema'", "schema = 1"),
        (("owner", "onwer"), "'onwer'", "'owner'"),
        (("ratios", "ratio"), "'model[0].ratio'", "'ratios'"),
        (("[0.3, 0.2]", "[0.3, 1.2]"), "'model[0].ratios'", "ratios = "),
        (("[0.3, 0.2]", "[]"), "'model[0].ratios'", "ratios = "),
        (("[0.3, 0.2]", "[0.2, 0.20]"), "'model[0].ratios'", "once"),
        (('"tiny"', "7"), "'model[0].model'", "model = "),
        (('"repair"', '"repare"'), "'model[0].method'", "'repair'"),
        (("4096", '"4096"'), "'model[0].calibration_tokens'", "number"),
        (("4096", "0"), "'model[0].calibration_tokens'", "number"),
        (('"Q8_0"', '"Q8_1"'), "'quants.gguf'", "'Q8_0'"),
        (("gguf = [", "onnx = ["), "'quants.onnx'", "targets"),
        (('"laptop-x86"', '"laptop-x68"'), "'targets'", "'laptop-x86'"),
        (('"laptop-x86"', '"gguf"'), "'targets'", "once"),
        (("repetitions = 4", "repetition = 4"), "'bench.repetition'", "'repetitions'"),
        (('method = "repair"', 'vocab_corpus = "absent.txt"'), "'model[0].vocab_corpus'", "path"),
        (('method = "repair"', "recover_tokens = 5"), "model[0]", "--recover distill"),
        (('method = "repair"', 'name = "../up"'), "'model[0].name'", "letters"),
        (('owner = "somebody"', "baseline = false"), "'bench'", "baseline"),
        (("[[model]]", "[[model]]\nmodel = 'tiny'\nratios = [0.1]\n[[model]]"), "'model[1]'", "name"),
        (('method = "repair"', 'languages = ["english"]'), "model[0]", "BCP 47"),
        (("schema = 1", "schema = 1\nschema = 1"), "not valid TOML", "toml.io"),
    ],
)
def test_a_mistake_is_refused_with_file_key_and_next_step(
    tmp_path: Path, change: tuple[str, str], place: str, hint: str
) -> None:
    path = written(tmp_path, GOOD.replace(*change, 1))
    with pytest.raises(DataError) as caught:
        read_release(path)
    assert caught.value.message.startswith(str(path))
    assert place in caught.value.message
    assert hint in (caught.value.hint or "")


def test_languages_are_codes_and_not_files(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD.replace('method = "repair"', 'languages = ["en", "code"]'))
    entry = read_release(path).models[0]
    assert entry.pruning(0.2).languages == ("en", "code")
    assert entry.said["languages"] == ("en", "code")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_release(tmp_path / "release.toml")


def test_targets_that_ask_for_one_file_share_a_cell(tmp_path: Path) -> None:
    cells = Cells(read_release(written(tmp_path, GOOD)))
    assert [plan.id for plan in cells.plans] == ["plan-tiny-0.2", "plan-tiny-0.3"]
    found = {cell.id: cell.targets for cell in cells.cells if cell.plan.ratio == 0.2}
    assert found == {
        # The two profiles have the same types; a type that one of them names is its own.
        "tiny-0.2-gguf-Q4_K_M": ("gguf", "laptop-x86"),
        "tiny-0.2-gguf-Q8_0": ("gguf",),
        "tiny-0.2-gguf-Q4_0": ("phone-arm64",),
    }


def test_the_matrix_is_what_github_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, GOOD)
    assert cli.run(["release", str(path), "--matrix"]) == 0
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    made = json.loads(line)
    assert made.keys() == {"include"}
    assert cli.run(["release", str(path), "--matrix", "plans"]) == 0
    plans = json.loads(capsys.readouterr().out)
    assert [plan["id"] for plan in plans["include"]] == ["plan-tiny-0.2", "plan-tiny-0.3"]
    assert {job["plan"] for job in made["include"]} == {plan["id"] for plan in plans["include"]}
    # A matrix's values must be no lists, and every id a name of a folder.
    assert all(isinstance(value, str | int | float | None) for job in made["include"] for value in job.values())
    assert len({job["id"] for job in made["include"]}) == len(made["include"]) == 6


def test_an_unknown_cell_is_named(tmp_path: Path) -> None:
    cells = Cells(read_release(written(tmp_path, GOOD)))
    assert isinstance(cells.named("tiny-0.2-gguf-Q4_0"), Cell)
    with pytest.raises(UsageError) as caught:
        cells.named("tiny-0.2-gguf-Q4_1")
    assert "tiny-0.2-gguf-Q4_0" in (caught.value.hint or "")


def test_a_release_is_the_same_in_another_place_and_another_with_other_text(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    one = Cells(read_release(written(first, GOOD)))
    shutil.copytree(first, second)
    path = second / "release.toml"
    path.write_text("# a comment\n" + path.read_text("utf-8"), encoding="utf-8")
    assert Cells(read_release(path)).description == one.description
    (second / "own.txt").write_text("other text\n" * 100, encoding="utf-8")
    assert Cells(read_release(path)).description != one.description
    assert str(tmp_path) not in json.dumps(dict(one.description))


def test_the_example_makes_all_built_in_targets_at_two_ratios() -> None:
    cells = Cells(read_release(ROOT / "examples" / "release.toml"))
    assert {entry.model for entry in cells.release.models} == {"tiny", "smollm2-135m"}
    assert set(cells.release.targets) == set(profile_names())
    assert all(len(entry.ratios) == 2 for entry in cells.release.models)
    made = {(cell.plan.id, target) for cell in cells.cells for target in cell.targets}
    assert made == {(plan.id, target) for plan in cells.plans for target in profile_names()}
    assert len(matrix(cells, "cells")["include"]) <= 256


def test_every_key_is_in_the_guide() -> None:
    from compact_edge.release import manifest

    text = (ROOT / "docs" / "release.md").read_text("utf-8")
    for key in (*manifest._KEYS, *manifest._MODEL_KEYS, *manifest._BENCH_KEYS):
        assert f"`{key}`" in text or f"[{key}]`" in text, key


def test_options_of_one_cell_need_one(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    assert cli.run(["release", str(path), "--plan", str(tmp_path)]) == 2
    assert cli.run(["release", str(path), "--cell", "plan-tiny-0.2", "--with-baseline"]) == 2


def test_errors_are_ours(tmp_path: Path) -> None:
    for text in ("", "schema = 1", "model = 3", "schema = 1\ntargets = 'gguf'\nmodel = []", "[[model]]", "\x00"):
        with pytest.raises(CompactEdgeError):
            read_release(written(tmp_path, text))
