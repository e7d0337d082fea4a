"""Runs child processes, in parallel if the free memory allows."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import IO

from compact.base.devices import free_memory
from compact_edge.terminal.console import format_duration
from exporters.native.child import child_environment

_MODULE = "compact_edge.cli.release_child"
_POLL_SECONDS = 0.1
# When asked to end, a child removes incomplete files. It is killed if it takes longer than this.
_GRACE_SECONDS = 20.0
_TAIL_BYTES = 16384
_ERROR = re.compile(r"^error: (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Job:
    """One run of `compact-edge` in a child process.

    Attributes:
        id: id of the cell.
        arguments: command-line arguments after `compact-edge`.
        memory: estimated peak memory in bytes.
        threads: threads of torch; None keeps the default. Plans need the default, because their figures depend on it.
        alone: run no other job at the same time, as for a measurement.
    """

    id: str
    arguments: tuple[str, ...]
    memory: int
    threads: int | None = None
    alone: bool = False


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    stderr: IO[bytes]
    started: float


def run_jobs(
    first: Iterable[Job],
    n_jobs: int,
    *,
    on_end: Callable[[Job, str | None], Iterable[Job]],
    note: Callable[[str], None],
) -> None:
    """Run jobs until none is left. If this function ends early, it also ends the children.

    Args:
        first: jobs that can start immediately.
        n_jobs: maximum number of parallel jobs. A job that does not fit in the free memory waits until it can
            run alone.
        on_end: called when a job ends, with the reason if it failed. Returns the jobs that can start now.
        note: called with one line per start and end of a job.
    """
    waiting = list(first)
    running: list[_Running] = []
    try:
        while waiting or running:
            for each in [each for each in running if each.process.poll() is not None]:
                running.remove(each)
                reason = _reason(each)
                took = format_duration(time.monotonic() - each.started)
                note(f"{each.job.id}: {'finished' if reason is None else 'failed'} in {took}")
                waiting += on_end(each.job, reason)
            while (job := _next(waiting, running, n_jobs)) is not None:
                waiting.remove(job)
                note(f"{job.id}: started")
                running.append(_start(job))
            if running:
                time.sleep(_POLL_SECONDS)
    finally:
        _end(running)


def _next(waiting: Sequence[Job], running: Sequence[_Running], n_jobs: int) -> Job | None:
    """Return the first job that may start now, or None."""
    if not running:
        return waiting[0] if waiting else None
    if len(running) >= n_jobs or any(each.job.alone for each in running):
        return None
    free = free_memory("cpu") - sum(max(0, each.job.memory - _resident(each.process.pid)) for each in running)
    return next((job for job in waiting if not job.alone and job.memory <= free), None)


def _resident(pid: int) -> int:
    """Return the resident memory of a process and its children in bytes."""
    import psutil

    try:
        process = psutil.Process(pid)
        return int(sum(each.memory_info().rss for each in (process, *process.children(recursive=True))))
    except psutil.Error:
        return 0


def _start(job: Job) -> _Running:
    environment = child_environment()
    if job.threads is not None:
        environment.setdefault("OMP_NUM_THREADS", str(job.threads))
    # On POSIX the file has no name, so it disappears with this process in any case.
    stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", _MODULE, *job.arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        env=environment,
        # A terminal sends Ctrl-C to the whole process group. Only this process should receive it; it ends the children.
        start_new_session=True,
    )
    return _Running(job, process, stderr, time.monotonic())


def _reason(each: _Running) -> str | None:
    """Return one line on why a child failed; None if it succeeded."""
    code = each.process.returncode
    each.stderr.seek(0, os.SEEK_END)
    each.stderr.seek(max(0, each.stderr.tell() - _TAIL_BYTES))
    text = each.stderr.read().decode("utf-8", "replace")
    each.stderr.close()
    if each.process.stdin is not None:
        each.process.stdin.close()
    if code == 0:
        return None
    errors = _ERROR.findall(text)
    if errors:
        return str(errors[-1])
    last = [line for line in text.splitlines() if line.strip()][-1:]
    how = f"ended by signal {-code}; memory may have run out" if code < 0 else f"exit code {code}"
    return f"{how}{f': {last[0].strip()}' if last else ''}"


def _end(running: Sequence[_Running]) -> None:
    for each in running:
        with contextlib.suppress(OSError):
            if each.process.stdin is not None:
                each.process.stdin.close()
    end = time.monotonic() + _GRACE_SECONDS
    for each in running:
        try:
            each.process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            each.process.kill()
            each.process.wait()
        finally:
            each.stderr.close()
