"""Processes that tests start: two of one job, and whether one has ended."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from tests.small_builds import ROOT


def environment(rank: int, port: int, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """What torchrun sets for process `rank` of two."""
    job = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    own = {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return {**(os.environ if base is None else base), **own, **{name: str(value) for name, value in job.items()}}


def pair(
    arguments: list[str], base: Mapping[str, str] | None = None, cwd: Path | None = None
) -> list[subprocess.Popen[str]]:
    """Start two processes that find each other as those of torchrun do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        subprocess.Popen(
            arguments, env=environment(rank, port, base), cwd=cwd,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each."""
    found = []
    for process in processes:
        out, errors = process.communicate(timeout=240)
        found.append((process.returncode, out, errors))
    return found


def gone(pid: int, seconds: float = 10.0) -> bool:
    """Whether a process has ended within `seconds` (a zombie that nobody reaps has ended)."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False
