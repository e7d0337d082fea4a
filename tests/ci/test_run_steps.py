"""The scripts of workflows and actions, run as they are written: a release from its matrix to its archives."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.ci.runner import Machine, Ran, run_action, run_job
from tests.ci.workflows import CI, RELEASE, ROOT

pytestmark = pytest.mark.skipif(
    not (ROOT / ".git").exists() or shutil.which("bash") is None or sys.platform == "win32",
    reason="needs a clone, and bash",
)

RELEASE_TOML = """\
schema = 1
targets = ["gguf"]

[quants]
gguf = ["Q8_0", "F16"]

[[model]]
model = "tiny"
ratios = [0.2]
calibration = "README.md"
calibration_tokens = 512
eval_text = "LICENSE"
"""
CELLS = ["tiny-0.2-gguf-Q8_0", "tiny-0.2-gguf-F16"]
FOLDER = "tiny-compact-0.2-GGUF"
RUNNER = "ubuntu-latest"


def machine_in(root: Path) -> Machine:
    return Machine(root, root / "cache")


@dataclass
class Chain:
    """Every job of a release, in the order of their needs; the first gathering lacks a cell."""

    machine: Machine
    matrix: Ran
    plan: Ran
    cells: list[Ran]
    too_early: Ran
    bench: Ran
    gather: Ran
    attest: Ran | None
    publish: Ran | None


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    machine = machine_in(tmp_path_factory.mktemp("release"))

    def job(name: str, **context: Any) -> Ran:
        inputs = {"file": "release.toml"}
        changes = {"OMP_NUM_THREADS": "1"}
        files = {"release.toml": RELEASE_TOML}
        return run_job(machine, RELEASE, name, changes=changes, prepare=files, **{"inputs": inputs, **context})

    matrix = job("matrix")
    needs: dict[str, Any] = {"matrix": {"result": "success", "outputs": matrix.outputs}}
    [plan_row] = json.loads(matrix.outputs["plans"])["include"]
    plan = job("plan", needs=needs, matrix=plan_row)
    first, second = json.loads(matrix.outputs["cells"])["include"]
    cells = [job("cell", needs=needs, matrix=first)]
    too_early = job("gather", needs=needs)
    shutil.rmtree(machine.artifacts / "release")
    cells.append(job("cell", needs=needs, matrix=second))
    quick = {"COMPACT_EDGE_BENCH_ARGS": "--repetitions 1 --depths 16 --tokens 2 --threads 1 --context 1024"}
    bench = job("bench", needs=needs, matrix={"runner": RUNNER}, vars=quick)
    gather = job("gather", needs=needs)
    needs["gather"], needs["attest"] = {"result": "success"}, {"result": "success"}
    repository = {"event": {"repository": {"private": False}}, "ref": "refs/tags/v1", "ref_name": "v1"}
    # These two are for GNU's tar, split and sha256sum, as their runner has them.
    linux = sys.platform == "linux"
    attest = job("attest", needs=needs, github=repository) if linux else None
    publish = job("publish", needs=needs, github=repository) if linux else None
    return Chain(machine, matrix, plan, cells, too_early, bench, gather, attest, publish)


@pytest.mark.slow
def test_the_matrix_lists_every_plan_and_cell(chain: Chain) -> None:
    assert chain.matrix.failed is None
    assert [row["id"] for row in json.loads(chain.matrix.outputs["cells"])["include"]] == CELLS
    assert chain.matrix.outputs["bench"] == "true"


@pytest.mark.slow
def test_each_cell_is_made_by_itself_and_is_an_artifact(chain: Chain) -> None:
    assert [ran.failed for ran in (chain.plan, *chain.cells)] == [None, None, None]
    assert chain.cells[0].ran == ["Name the cache", "Make the cell"]
    for cell in CELLS:
        assert (chain.machine.artifacts / f"cell-{cell}" / "cell.json").is_file()


@pytest.mark.slow
def test_a_cell_that_is_missing_fails_the_gathering_and_leaves_the_others(chain: Chain) -> None:
    assert chain.too_early.failed == "Gather the cells: exit code 3"
    assert chain.too_early.ran == ["Name the cache", "Gather the cells", "Verify"]
    assert f"{CELLS[1]} " in chain.too_early.summary
    assert " missing " in chain.too_early.summary


@pytest.mark.slow
def test_the_bench_names_runner_and_processor(chain: Chain) -> None:
    assert chain.bench.failed is None
    assert f"## Measured on {RUNNER}" in chain.bench.summary
    for cell in CELLS:
        folder = chain.machine.artifacts / f"reports-{RUNNER}" / f"{cell}-on-{RUNNER}"
        device = json.loads((folder / "report.json").read_text("utf-8"))["device"]
        assert str(device["cpu_model"] or device["machine"]) in chain.bench.summary
    assert "| File size |" in chain.bench.summary


@pytest.mark.slow
def test_the_gathered_release_is_whole_and_says_what_was_measured(chain: Chain) -> None:
    assert chain.gather.failed is None
    release = chain.machine.artifacts / "release"
    assert json.loads((release / "manifest.json").read_text("utf-8"))["missing"] == []
    assert sorted(path.name for path in (release / FOLDER).glob("*.gguf")) == [
        "tiny-compact-0.2-F16.gguf",
        "tiny-compact-0.2-Q8_0.gguf",
    ]
    assert len(list((release / FOLDER / "reports").rglob("report.json"))) == len(CELLS)
    assert all(f"{cell} " in chain.gather.summary for cell in CELLS)
    # The card, without its front matter.
    assert f"# {FOLDER}\n" in chain.gather.summary
    assert "hf upload" in chain.gather.summary
    assert "license:" not in chain.gather.summary


@pytest.mark.slow
def test_the_archives_hold_the_release(chain: Chain, tmp_path: Path) -> None:
    if chain.attest is None or chain.publish is None:
        pytest.skip("the jobs that sign and publish run on Linux")
    assert chain.attest.ran == ["Check the sums"]
    assert (chain.attest.failed, chain.publish.failed) == (None, None)
    assets = chain.publish.folder / "assets"
    assert {path.name for path in assets.iterdir()} == {"SHA256SUMS", "manifest.json", f"{FOLDER}.tar"}
    for name in ("SHA256SUMS", "manifest.json"):
        shutil.copy(assets / name, tmp_path)
    subprocess.run(["tar", "-xf", str(assets / f"{FOLDER}.tar")], cwd=tmp_path, check=True)
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path, check=True)
    assert "tar -xf" in (chain.publish.folder / "notes.md").read_text("utf-8")


@pytest.mark.slow
def test_the_smoke_job_builds_verifies_and_measures(tmp_path: Path) -> None:
    ran = run_job(machine_in(tmp_path), CI, "windows", changes={"OMP_NUM_THREADS": "1"})
    assert ran.failed is None
    assert ran.ran == ["Name the cache", "Build", "Verify", "Measure", "Report"]
    assert "### compact-edge build tiny" in ran.summary
    assert "| File size |" in ran.summary
    assert list((ran.folder / "tiny-compact" / "gguf").glob("*.gguf"))


def recording(machine: Machine, code: int = 0) -> Path:
    """Put a `compact-edge` in place that only writes down its arguments."""
    log = machine.root / "said.json"
    program = machine.root / "programs" / "compact-edge"
    program.write_text(
        f"#!{sys.executable}\nimport json, sys\n"
        f"open({str(log)!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')\n"
        f"print('a table'); sys.exit({code})\n",
        "utf-8",
    )
    return log


def said(log: Path) -> list[list[str]]:
    return [json.loads(line) for line in log.read_text("utf-8").splitlines()]


def test_inputs_become_arguments_and_nothing_else(tmp_path: Path) -> None:
    machine = machine_in(tmp_path)
    log = recording(machine)
    hostile = "$(touch hacked) `touch hacked` ; touch hacked"
    ran = run_action(
        machine,
        {
            "model": f"a model {hostile}",
            "target": "gguf, onnx",
            "quant": "gguf=Q8_0,onnx=int4",
            "ratio": 0.2,
            "args": "--seed 1\n  --keep-tokens *.md",
            "out": "made here",
        },
    )
    assert ran.failed is None
    assert said(log) == [
        [
            *("build", f"a model {hostile}", "--target", "gguf", "--target", "onnx", "--ratio", "0.2"),
            *("--quant", "gguf=Q8_0", "--quant", "onnx=int4", "--seed", "1", "--keep-tokens", "*.md"),
            *("--out", "made here"),
        ],
        ["verify", "made here"],
    ]
    assert not list(tmp_path.rglob("hacked"))
    assert ran.outputs["directory"] == "made here"
    assert "a table" in Path(ran.outputs["report"]).read_text("utf-8")
    assert "a table" in ran.summary


def test_a_release_file_needs_no_model(tmp_path: Path) -> None:
    machine = machine_in(tmp_path)
    log = recording(machine)
    ran = run_action(machine, {"release": "release.toml", "bench": "true", "out": "o"})
    assert ran.failed is None
    assert said(log) == [["release", "release.toml", "--bench", "--out", "o"], ["verify", "o"]]


def test_a_failed_cell_fails_the_action_and_is_still_reported(tmp_path: Path) -> None:
    machine = machine_in(tmp_path)
    recording(machine, code=3)
    ran = run_action(machine, {"release": "release.toml"})
    assert ran.failed == "Build: exit code 3"
    assert ran.ran == ["Name the cache", "Build", "Report"]
    assert "a table" in ran.summary


def test_model_and_release_exclude_each_other(tmp_path: Path) -> None:
    machine = machine_in(tmp_path)
    log = recording(machine)
    for given in ({"model": "tiny"}, {"target": "gguf"}, {"ratio": "0.1"}):
        assert run_action(machine, {"release": "release.toml", **given}).failed == "Build: exit code 2"
    assert not log.exists()


def test_without_model_and_release_it_only_installs(tmp_path: Path) -> None:
    machine = machine_in(tmp_path)
    log = recording(machine)
    ran = run_action(machine, {})
    assert (ran.failed, ran.ran) == (None, ["Name the cache"])
    assert not log.exists()


@pytest.mark.parametrize(
    ("text", "asked", "wanted"),
    [("", "", "true"), ("", "false", "false"), ("baseline = false\n", "", "false")],
)
def test_nothing_is_measured_where_there_is_nothing_to_compare_with(
    tmp_path: Path, text: str, asked: str, wanted: str
) -> None:
    machine = machine_in(tmp_path)
    recording(machine)
    file = RELEASE_TOML.replace("schema = 1\n", f"schema = 1\n{text}")
    inputs = {"file": "other.toml", "bench": asked}
    ran = run_job(machine, RELEASE, "matrix", prepare={"other.toml": file}, inputs=inputs)
    assert ran.outputs["bench"] == wanted


def test_a_device_without_an_engine_is_a_finding_and_any_other_failure_fails(tmp_path: Path) -> None:
    for code, failed in ((69, None), (3, "Measure each cell: exit code 1")):
        root = tmp_path / str(code)
        root.mkdir()
        machine = machine_in(root)
        program = machine.root / "programs" / "compact-edge"
        program.write_text(f'#!/bin/sh\n[ "$1" = devices ] || exit {code}\necho "local  ready  a processor"\n', "utf-8")
        (machine.artifacts / "cell-a").mkdir()
        (machine.artifacts / "cell-a" / "cell.json").touch()
        needs = {"matrix": {"result": "success", "outputs": {"bench": "true"}}}
        ran = run_job(machine, RELEASE, "bench", needs=needs, matrix={"runner": RUNNER})
        assert ran.failed == failed
        assert "a processor" in ran.summary
        assert f"- a-on-{RUNNER}: not measured (exit code {code}" in ran.summary
