"""Cells made apart and gathered: what a release holds, what is refused, and what `verify` says of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import metadata_load

from compact.base.files import write_sums
from compact_edge.cli import main as cli
from runtime_bench.report.write import write_report
from tests.checkpoints import llama_vocabularies
from tests.compact_edge.small_release import CELLS, FOLDER, Factory
from tests.runtime_bench import synthetic_run
from tests.small_builds import leftovers, tree


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Factory:
    made = Factory(tmp_path_factory.mktemp("release"))
    made.make()
    return made


@pytest.fixture(scope="module")
def release(factory: Factory) -> Path:
    """The gathered release; one cell failed."""
    out = factory.shop.root / "release"
    assert cli.run(["gather", str(factory.cells), str(factory.plan), "--out", str(out)]) == 3
    return out


@pytest.fixture(autouse=True)
def cached(factory: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPACT_EDGE_CACHE", str(factory.shop.cache))


def error_lines(capsys: pytest.CaptureFixture[str]) -> str:
    return "\n".join(line for line in capsys.readouterr().err.splitlines() if line.startswith(("error:", "hint:")))


def read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def edited(folder: Path, name: str, change: dict[str, Any]) -> None:
    """Change top keys of a JSON file of a published folder, and its checksums with it."""
    write = folder / name
    write.write_text(json.dumps({**read(write), **change}), encoding="utf-8")
    write_sums(folder)


def test_a_cell_without_room_fails_and_leaves_nothing(factory: Factory) -> None:
    assert factory.codes == dict(zip(CELLS, (0, 0, 3), strict=True))
    assert not (factory.cells / CELLS[2]).exists()
    assert leftovers(factory.shop.root) == []


def test_the_release_is_laid_out_for_the_hub(factory: Factory, release: Path) -> None:
    assert {path.name for path in release.iterdir()} == {FOLDER, "manifest.json", "SHA256SUMS"}
    files = {path.name for path in (release / FOLDER).iterdir()}
    artifacts = {"Small-compact-0.2-Q8_0.gguf", "Small-compact-0.2-Q4_0.gguf"}
    others = {"README.md", "SHA256SUMS", "manifest.json", "measured.json", "plan.json", "imatrix.gguf"}
    assert files == artifacts | others
    plan = read(factory.plan / "plan.json")
    assert read(release / FOLDER / "plan.json") == plan
    paths = [release / FOLDER / name for name in sorted(artifacts)]
    assert {found["n_vocab"] for found in llama_vocabularies(paths, ["hello"])} == {len(plan["kept_token_ids"])}
    assert read(release / "manifest.json")["missing"] == [CELLS[2]]


def test_the_card_is_one_the_hub_reads_and_ends_with_the_upload(release: Path) -> None:
    path = release / FOLDER / "README.md"
    matter = metadata_load(path)
    assert matter is not None
    assert {"gguf", "llama.cpp", "pruned"} <= set(matter["tags"])
    assert matter["pipeline_tag"] == "text-generation"
    text = path.read_text(encoding="utf-8")
    assert text.rstrip().splitlines()[-2:] == [f"hf upload somebody/{FOLDER} . .", "```"]
    manifest = read(release / FOLDER / "manifest.json")
    rows = [line for line in text.splitlines() if line.startswith("| [`Small-compact")]
    assert len(rows) == len(manifest["artifacts"]) == 2
    for artifact in manifest["artifacts"]:
        row = next(row for row in rows if f"`{artifact['place']}`" in row)
        assert artifact["size_bytes"] == (release / FOLDER / artifact["place"]).stat().st_size
        assert f"{artifact['size_bytes'] / 1e6:.1f} MB" in row
        assert f"{artifact['bits_per_weight']:.2f}" in row
    measured = read(release / FOLDER / "measured.json")
    assert f"{measured['Small-compact-0.2-Q4_0.gguf']['bits_per_byte']['pruned']:.3f}" in text
    assert "64-bit Arm phone with 4 GB of memory" in text


def test_a_manifest_holds_no_figure_and_no_place_of_this_machine(factory: Factory, release: Path) -> None:
    text = (release / FOLDER / "manifest.json").read_text(encoding="utf-8")
    assert str(factory.shop.root) not in text
    assert "bits_per_byte" not in text
    quantised = {a["place"]: a["made_with"] for a in read(release / FOLDER / "manifest.json")["artifacts"]}
    assert quantised["Small-compact-0.2-Q8_0.gguf"] == {"writer": "compact-edge"}
    assert quantised["Small-compact-0.2-Q4_0.gguf"].keys() == {"engine", "build", "isa"}


def test_verify_finds_what_was_changed_taken_or_added(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["verify", str(release)]) == 0
    assert cli.run(["verify", str(release / FOLDER)]) == 0
    for number, spoil in enumerate(
        (
            lambda copy: (copy / FOLDER / "plan.json").write_text("{}"),
            lambda copy: (copy / FOLDER / "imatrix.gguf").unlink(),
            lambda copy: (copy / FOLDER / "more.txt").write_text("more"),
            lambda copy: shutil.rmtree(copy / FOLDER),
            # The checksums were made to fit; the manifest still knows.
            lambda copy: ((copy / FOLDER / "plan.json").write_text("{}"), write_sums(copy / FOLDER), write_sums(copy)),
        )
    ):
        copy = tmp_path / str(number)
        shutil.copytree(release, copy)
        spoil(copy)
        capsys.readouterr()
        assert cli.run(["verify", str(copy)]) == 65, number
        assert FOLDER in error_lines(capsys)


def test_a_cell_made_again_without_a_cache_gives_the_same_release(
    factory: Factory, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPACT_EDGE_CACHE", str(tmp_path / "cache"))
    plan = tmp_path / factory.plan.name
    assert cli.run(["release", str(factory.toml), "--cell", plan.name, "--out", str(plan)]) == 0
    assert tree(plan) == tree(factory.plan)
    again = tmp_path / "cells"
    assert cli.run(factory.cell(CELLS[1], again / CELLS[1])) == 0
    shutil.copytree(factory.cells / CELLS[0], again / CELLS[0])
    out = tmp_path / "out"
    assert cli.run(["gather", str(again), "--out", str(out)]) == 3
    assert tree(out) == tree(release)


def test_gather_refuses_what_does_not_belong_together(
    factory: Factory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = factory.cells / CELLS[0], tmp_path / "second"
    shutil.copytree(factory.cells / CELLS[1], second)

    def refused(*folders: Path) -> str:
        capsys.readouterr()
        out = tmp_path / "out"
        assert cli.run(["gather", *map(str, folders), "--out", str(out)]) == 65
        assert not out.exists()
        return error_lines(capsys)

    cell = read(second / "cell.json")
    assert f"same cell {CELLS[0]}" in refused(first, first)
    edited(second, "cell.json", {"release": {**cell["release"], "owner": "somebody else"}})
    assert "different release.toml" in refused(first, second)
    edited(second, "cell.json", {"release": cell["release"], "plan": {**cell["plan"], "sha256": "0" * 64}})
    assert "different plan" in refused(first, second)
    edited(second, "cell.json", {"plan": cell["plan"], "repository": "../outside"})
    assert "outside" in refused(first, second)
    edited(second, "cell.json", {"repository": FOLDER, "files": {"../up": {"from": "cell.json", "sha256": "0" * 64}}})
    refused(first, second)
    assert not (tmp_path / "up").exists()
    artifact = next((second / "gguf").glob("*.gguf"))
    artifact.write_bytes(artifact.read_bytes()[:-1] + b"\xff")
    assert "damaged" in refused(first, second)
    (tmp_path / "empty").mkdir()
    assert "contains no cell" in refused(tmp_path / "empty")


def test_a_plan_of_another_release_toml_is_refused(
    factory: Factory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = factory.toml.read_text(encoding="utf-8")
    other = factory.toml.with_name("other.toml")
    other.write_text(text.replace("calibration_tokens = 512", "calibration_tokens = 256"), encoding="utf-8")
    line = ["release", str(other), "--cell", CELLS[0], "--plan", str(factory.plan), "--out", str(tmp_path / "out")]
    assert cli.run(line) == 65
    assert "other settings" in error_lines(capsys)
    assert not (tmp_path / "out").exists()


def test_files_made_again_are_identical(release: Path, capsys: pytest.CaptureFixture[str], factory: Factory) -> None:
    capsys.readouterr()
    # What a manifest names is not opened unasked.
    assert cli.run(["verify", str(release), "--rebuild"]) == 2
    assert "--model MODEL" in error_lines(capsys)
    assert cli.run(["verify", str(release), "--rebuild", "--model", str(factory.shop.model), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["files"]
    assert {each["file"]: each["verdict"] for each in found} == {
        f"{FOLDER}/Small-compact-0.2-Q8_0.gguf": "identical",
        f"{FOLDER}/Small-compact-0.2-Q4_0.gguf": "identical",
    }


def test_a_file_of_another_engine_is_not_comparable_and_another_file_is_different(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], factory: Factory
) -> None:
    folder = tmp_path / FOLDER
    shutil.copytree(release / FOLDER, folder)
    manifest = read(folder / "manifest.json")
    quantised = next(a for a in manifest["artifacts"] if "Q4_0" in a["place"])
    line = ["verify", str(folder), "--rebuild", "--model", str(factory.shop.model)]

    def verdicts(code: int) -> dict[str, str]:
        write_sums(folder)
        (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        write_sums(folder)
        capsys.readouterr()
        assert cli.run([*line, "--json"]) == code
        return {each["file"]: each["verdict"] for each in json.loads(capsys.readouterr().out)["files"]}

    engine = dict(quantised["made_with"])
    for key, other in (("engine", "llama-cpp-python 0.0.1"), ("build", "0" * 64), ("isa", ["aarch64", "NEON"])):
        quantised["made_with"] = {**engine, key: other}
        assert verdicts(69) == {
            "Small-compact-0.2-Q8_0.gguf": "identical",
            "Small-compact-0.2-Q4_0.gguf": "not comparable",
        }
    path = folder / "Small-compact-0.2-Q8_0.gguf"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    digest = write_sums(folder)[path.name]
    manifest["files"][path.name] = digest
    next(a for a in manifest["artifacts"] if a["place"] == path.name)["files"][path.name] = digest
    assert verdicts(3)["Small-compact-0.2-Q8_0.gguf"] == "different"


def test_the_folder_of_a_cell_with_its_baseline_is_what_the_bench_opens(factory: Factory, tmp_path: Path) -> None:
    from runtime_bench.bench_artifact import find_artifact, find_baseline

    out = tmp_path / "cell"
    assert cli.run(factory.cell(CELLS[0], out, "--with-baseline")) == 0
    baseline = find_baseline(find_artifact(out))
    assert baseline is not None
    assert baseline.parent == out / "baseline"
    # It stays behind: a release has the pruned files only.
    assert cli.run(["gather", str(out), "--out", str(tmp_path / "out")]) == 3
    assert {p.name for p in (tmp_path / "out" / FOLDER).glob("*.gguf")} == {"Small-compact-0.2-Q8_0.gguf"}


def test_a_report_of_another_machine_joins_the_file_that_it_measured(
    factory: Factory, release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report"
    report.mkdir()
    place = "Small-compact-0.2-Q4_0.gguf"
    manifest = read(release / FOLDER / "manifest.json")
    made = synthetic_run.facts()

    def measured(sha256: str) -> None:
        pruned = replace(made.subjects["pruned"], sha256=sha256)
        write_report(report, replace(made, subjects={**made.subjects, "pruned": pruned}), synthetic_run.samples(6))
        write_sums(report)

    measured(manifest["files"][place])
    out = tmp_path / "out"
    assert cli.run(["gather", str(factory.cells), str(report), "--out", str(out)]) == 3
    lies = out / FOLDER / "reports" / place.removesuffix(".gguf") / "raspberry-pi-5-model-b-rev-1-0"
    assert (lies / "samples.jsonl").read_bytes() == (report / "samples.jsonl").read_bytes()
    card = (out / FOLDER / "README.md").read_text(encoding="utf-8")
    (row,) = [line for line in card.splitlines() if line.startswith("| Raspberry Pi 5")]
    assert f"`{place}`" in row
    assert cli.run(["verify", str(out)]) == 0
    # What was made is what it was; only what was measured differs.
    before, after = tree(release / FOLDER), tree(out / FOLDER)
    differing = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert {name.partition("/")[0] for name in differing} == {"README.md", "SHA256SUMS", "measured.json", "reports"}
    measured("0" * 64)
    capsys.readouterr()
    assert cli.run(["gather", str(factory.cells), str(report), "--out", str(tmp_path / "no")]) == 65
    assert "none of the files" in error_lines(capsys)
