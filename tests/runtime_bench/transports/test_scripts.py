"""The device's watcher in every shell that is here: Android has mksh, small Linux boards ash, others dash and bash."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime_bench.transports.scripts import KEEP, WATCH
from tests.runtime_bench.transports.devices import eventually, gone
from tests.runtime_bench.transports.shells import SHELLS

SECONDS = 25


@pytest.fixture(params=SHELLS, ids=lambda shell: shell[0].rpartition("/")[2])
def shell(request: pytest.FixtureRequest) -> list[str]:
    words: list[str] = request.param
    return words


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def watch(
    shell: list[str], folder: Path, log: str, stdin: int, limit: int, words: list[str]
) -> subprocess.Popen[bytes]:
    values = [str(folder), log, str(stdin), str(limit), "MARK", words[0], *words]
    pipe = subprocess.PIPE
    return subprocess.Popen([*shell, "-c", WATCH, "x", *values], stdin=pipe, stdout=pipe, stderr=pipe)


def pid_of(process: subprocess.Popen[bytes]) -> int:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(b"MARK pid "):
            return int(line.split()[2])
    raise AssertionError("no pid")


def test_output_and_status_are_passed_on(
    shell: list[str], tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    words = ["sh", "-c", 'cat; printf "%s" "$1"; echo err >&2; exit 7', "sh", "it's $(x)"]
    process = watch(shell, tmp_path, "-", 3, 60, words)
    started.append(process)
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    process.stdin.write(b"abc")
    process.stdin.flush()  # and stays open
    assert process.stdout.read() == b"\nMARK begin\nabcit's $(x)\nMARK exit 7\n"
    assert process.stderr.read() == b"err\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stubborn", [False, True])
def test_the_end_of_stdin_ends_the_program_and_its_children(
    shell: list[str], tmp_path: Path, started: list[subprocess.Popen[bytes]], stubborn: bool
) -> None:
    trap = 'trap "" TERM; ' if stubborn else ""
    process = watch(shell, tmp_path, "./log", 0, 600, ["sh", "-c", f"{trap}sleep 300 & echo $! >child; wait; wait"])
    started.append(process)
    pid = pid_of(process)
    assert eventually(lambda: (tmp_path / "child").is_file() and bool((tmp_path / "child").read_text("utf-8")))
    child = int((tmp_path / "child").read_text("utf-8"))
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(SECONDS) == 0
    assert gone(pid)
    if shutil.which("setsid"):
        assert eventually(lambda: gone(child))


def test_the_time_limit_ends_the_program(
    shell: list[str], tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    process = watch(shell, tmp_path, "./log", 0, 1, ["sleep", "300"])
    started.append(process)
    pid = pid_of(process)
    assert process.wait(SECONDS) == 0
    assert gone(pid)


def test_a_dead_connection_ends_the_program(
    shell: list[str], tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    process = watch(shell, tmp_path, "./log", 0, 600, ["sh", "-c", "echo $$ >pid; exec sleep 300"])
    started.append(process)
    assert process.stdin is not None and process.stdout is not None
    process.stdout.close()
    process.stdin.close()
    process.wait(SECONDS)
    note = tmp_path / "pid"
    assert not note.exists() or not note.read_text("utf-8") or eventually(lambda: gone(int(note.read_text("utf-8"))))


def test_nothing_holds_the_connection_after_the_program(
    shell: list[str], tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    for _ in range(20):
        process = watch(shell, tmp_path, "-", 0, 600, ["true"])
        started.append(process)
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read().endswith(b"MARK exit 0\n")
        assert process.stderr.read() == b""


def test_a_run_directory_goes_with_its_connection(
    shell: list[str], tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    pipe = subprocess.PIPE
    base = tmp_path / "a b"
    process = subprocess.Popen([*shell, "-c", KEEP, "x", "MARK", str(base), "run"], stdin=pipe, stdout=pipe)
    started.append(process)
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() + process.stdout.readline() == f"\nMARK ready {base}\n".encode()
    (base / "runs" / "run" / "log").write_text("x", "utf-8")
    process.stdin.close()
    process.wait(SECONDS)
    assert list((base / "runs").iterdir()) == []
