"""Cells at once: the memory that is free decides, failures leave the others, and nothing outlives the parent."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import psutil
import pytest

from compact_edge.release import jobs
from compact_edge.release.jobs import Job, run_jobs

GB = 1_000_000_000


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(jobs, "_MODULE", "tests.reliability.release_child_standin")
    return tmp_path / "log"


def job(log: Path, name: str, seconds: float = 0.3, code: int = 0, memory: int = 0, *, alone: bool = False) -> Job:
    return Job(name, (str(log), name, str(seconds), str(code)), memory, alone=alone)


def run(first: Iterable[Job], n_jobs: int, follow: dict[str, list[Job]] | None = None) -> dict[str, str | None]:
    """Reasons by job, in the order in which they ended."""
    ended: dict[str, str | None] = {}

    def on_end(each: Job, reason: str | None) -> list[Job]:
        ended[each.id] = reason
        return (follow or {}).get(each.id, [])

    run_jobs(first, n_jobs, on_end=on_end, note=lambda _line: None)
    return ended


def most_at_once(log: Path) -> int:
    now = most = 0
    for line in log.read_text(encoding="utf-8").splitlines():
        now += 1 if line.startswith("began") else -1
        most = max(most, now)
    return most


def test_as_many_run_at_once_as_were_asked_for(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "free_memory", lambda _device: 100 * GB)
    assert run([job(log, f"job{n}", memory=GB) for n in range(4)], 2).keys() == {f"job{n}" for n in range(4)}
    assert most_at_once(log) == 2


def test_what_does_not_fit_waits_and_runs_alone(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "free_memory", lambda _device: 3 * GB)
    made = [job(log, "a", memory=2 * GB), job(log, "b", memory=2 * GB), job(log, "huge", memory=50 * GB)]
    assert set(run(made, 3)) == {"a", "b", "huge"}
    assert most_at_once(log) == 1


def test_a_small_one_runs_beside_a_large_one(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "free_memory", lambda _device: 4 * GB)
    made = [job(log, "a", 3, memory=2 * GB), job(log, "b", memory=3 * GB), job(log, "c", memory=GB)]
    run(made, 3)
    words = [line.split()[:2] for line in log.read_text(encoding="utf-8").splitlines()]
    assert words.index(["began", "c"]) < words.index(["ended", "a"]) < words.index(["began", "b"])


def test_a_measurement_has_the_machine_for_itself(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "free_memory", lambda _device: 100 * GB)
    run([job(log, "bench", alone=True), job(log, "a"), job(log, "b", alone=True)], 3)
    assert most_at_once(log) == 1


def test_a_failure_is_its_last_error_and_the_others_go_on(log: Path) -> None:
    ended = run([job(log, "bad", code=3), job(log, "good")], 1, {"good": [job(log, "later")]})
    assert ended == {"bad": "bad went wrong", "good": None, "later": None}


def test_an_interruption_ends_the_children(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "free_memory", lambda _device: 100 * GB)

    def interrupt(_each: Job, _reason: str | None) -> list[Job]:
        end = time.monotonic() + 60
        while log.read_text(encoding="utf-8").count("began long") < 2 and time.monotonic() < end:
            time.sleep(0.02)
        raise KeyboardInterrupt

    made = [job(log, "short", 0.1), job(log, "long1", 600), job(log, "long2", 600)]
    with pytest.raises(KeyboardInterrupt):
        run_jobs(made, 3, on_end=interrupt, note=lambda _line: None)
    lines = log.read_text(encoding="utf-8").splitlines()
    assert {line for line in lines if line.startswith("stopped")} == {"stopped long1", "stopped long2"}
    assert not any(psutil.pid_exists(int(line.split()[2])) for line in lines if line.startswith("began long"))
