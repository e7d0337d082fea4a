"""A run's directory: raw files in, the same report out, and damage told in one line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from compact.base.errors import DamagedFileError, StorageError
from compact.base.files import read_json, read_sums, sha256_file, write_sums
from compact_edge.cli import main as cli
from runtime_bench.records import Sample
from runtime_bench.report.write import load_run, read_facts, read_samples, write_report
from tests.runtime_bench import synthetic_run
from tests.runtime_bench.report.report_pages import HOSTILE, hostile_facts

FORMS = ("report.json", "report.md", "report.html")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's directory, empty."""
    path = tmp_path / "run"
    path.mkdir()
    return path


def rendered_again(run: Path) -> Path:
    """What `compact-edge report` makes of the raw files of a run."""
    out = run.with_name("again")
    assert cli.run(["report", str(run), "--out", str(out)]) == 0
    return out


def test_rendering_again_gives_the_same_bytes(run: Path) -> None:
    document = write_report(run, synthetic_run.facts(), synthetic_run.samples())
    assert sorted(path.name for path in run.iterdir()) == sorted((*FORMS, "facts.json", "samples.jsonl"))
    before = {name: (run / name).read_bytes() for name in FORMS}
    for name in FORMS:
        (run / name).unlink()
    assert load_run(run) == document
    again = rendered_again(run)
    assert {name: (again / name).read_bytes() for name in FORMS} == before


def test_the_raw_files_give_the_records_back(tmp_path: Path) -> None:
    facts, samples = hostile_facts(HOSTILE + "\u2028\x85"), synthetic_run.samples(2)
    write_report(tmp_path, facts, samples)
    assert read_samples(tmp_path / "samples.jsonl") == samples
    again = read_facts(tmp_path / "facts.json")
    assert again.notes == facts.notes
    assert again.subjects == facts.subjects
    assert again.prompts == facts.prompts


def test_times_that_are_none_survive(tmp_path: Path) -> None:
    def damage(sample: Sample) -> Sample:
        first = replace(sample.generations[0], token_s=(math.nan, 1.0), prompt_s=math.inf)
        return replace(sample, generations=(first, *sample.generations[1:]), load_s=math.nan)

    document = write_report(tmp_path, synthetic_run.facts(), synthetic_run.samples(6, change=damage))
    assert load_run(tmp_path) == document
    assert not any(metric["key"] == "ttft_s:short" for metric in document["metrics"])


def test_checksums_follow(run: Path) -> None:
    write_report(run, synthetic_run.facts(), synthetic_run.samples(1))
    write_sums(run)
    (run / "report.md").write_text("changed by hand")
    again = rendered_again(run)
    assert {name: read_sums(again)[name] for name in FORMS} == {name: read_sums(run)[name] for name in FORMS}
    assert all(sha256_file(again / name) == digest for name, digest in read_sums(again).items())


def cut_samples(directory: Path) -> None:
    path = directory / "samples.jsonl"
    path.write_text(path.read_text()[:-500])


def no_side(directory: Path) -> None:
    path = directory / "samples.jsonl"
    path.write_text(path.read_text().replace('"side": "pruned"', '"side": "other"'))


def text_for_time(directory: Path) -> None:
    path = directory / "samples.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[1]["generations"][0]["token_s"][3] = "soon"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def deep(directory: Path) -> None:
    (directory / "samples.jsonl").write_text("[" * 100_000)


def not_text(directory: Path) -> None:
    (directory / "samples.jsonl").write_bytes(b"\xff\xfe\x00")


def other_facts(directory: Path) -> None:
    (directory / "facts.json").write_text('{"schema": "compact-edge/bench-facts/1", "unlike": []}')


def other_schema(directory: Path) -> None:
    (directory / "facts.json").write_text('{"schema": "x"}')


def bad_types(directory: Path) -> None:
    path = directory / "facts.json"
    value = json.loads(path.read_text())
    value["reference_characters"] = "many"
    path.write_text(json.dumps(value))


DAMAGES = (cut_samples, no_side, text_for_time, deep, not_text, other_facts, other_schema, bad_types)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_raw_files_are_refused_and_the_report_stays(damage: Callable[[Path], None], tmp_path: Path) -> None:
    write_report(tmp_path, synthetic_run.facts(), synthetic_run.samples(2))
    before = {name: (tmp_path / name).read_bytes() for name in FORMS}
    damage(tmp_path)
    with pytest.raises(DamagedFileError) as caught:
        load_run(tmp_path)
    assert "\n" not in caught.value.message
    assert str(tmp_path) in caught.value.message
    assert {name: (tmp_path / name).read_bytes() for name in FORMS} == before


def test_a_report_alone_can_be_read(tmp_path: Path) -> None:
    document = write_report(tmp_path, synthetic_run.facts(), synthetic_run.samples(2))
    for name in ("facts.json", "samples.jsonl"):
        (tmp_path / name).unlink()
    assert load_run(tmp_path) == load_run(tmp_path / "report.json") == document == read_json(tmp_path / "report.json")


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        write_report(tmp_path / "none", synthetic_run.facts(), [])
    with pytest.raises(DamagedFileError):
        load_run(tmp_path / "none")
