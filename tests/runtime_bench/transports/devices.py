"""What the tests of devices share: files to send, and processes that must be gone."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import psutil

SECONDS = 25


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def eventually(condition: Callable[[], bool], seconds: float = SECONDS) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def local_file(folder: Path, name: str, data: bytes) -> tuple[Path, str]:
    path = folder / name
    path.write_bytes(data)
    return path, sha256(data)
