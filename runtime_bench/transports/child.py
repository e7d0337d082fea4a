"""A client process on this machine (`ssh`, `adb`, a local shell) that runs a command on the device.

Its stdin stays open as long as the command may run. On the device the end of stdin ends the command. Therefore no
command keeps running on the device, even after Ctrl-C or SIGKILL here.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TypeVar

from runtime_bench.transports.base import DeviceUnavailableError

Found = TypeVar("Found")

_BLOCK = 1 << 16
# Seconds for a client to end by itself after the end of its stdin. The device waits five seconds before it sends KILL.
PATIENCE = 12.0


class Child:
    """One client process. Threads collect its stdout and stderr in memory, so it is not for large binary streams."""

    def __init__(self, argv: Sequence[str], *, hint: str) -> None:
        """Start it.

        Args:
            argv: program and arguments.
            hint: the next step if the program is not installed.

        Raises:
            DeviceUnavailableError: the program cannot be started.
        """
        self._process = spawn(argv, hint=hint)
        self._changed = threading.Condition()
        self._stdout = bytearray()
        self._stderr = bytearray()
        self._open = 2
        for stream, buffer in ((self._process.stdout, self._stdout), (self._process.stderr, self._stderr)):
            assert stream is not None
            threading.Thread(target=self._collect, args=(stream, buffer), daemon=True).start()

    def _collect(self, stream: IO[bytes], buffer: bytearray) -> None:
        with contextlib.suppress(OSError, ValueError):
            while block := os.read(stream.fileno(), _BLOCK):
                with self._changed:
                    buffer += block
                    self._changed.notify_all()
        with self._changed:
            self._open -= 1
            self._changed.notify_all()
        stream.close()

    @property
    def stdout(self) -> bytes:
        """Its output so far."""
        with self._changed:
            return bytes(self._stdout)

    @property
    def stderr(self) -> str:
        """Its output so far."""
        with self._changed:
            return self._stderr.decode("utf-8", "replace")

    @property
    def ended(self) -> bool:
        """Whether it has ended and all its output was received."""
        with self._changed:
            return self._open == 0

    def write(self, data: bytes) -> bool:
        """Write to its stdin, which stays open. Returns False if the process has ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except (OSError, ValueError):
            return False
        return True

    def end_stdin(self) -> None:
        """Close its stdin."""
        close_stdin(self._process)

    def wait_for(self, find: Callable[[bytes], Found | None], timeout: float) -> Found | None:
        """Wait until `find` returns a value for stdout; None if the process ends or `timeout` seconds pass first."""
        end = time.monotonic() + timeout
        with self._changed:
            while True:
                found = find(bytes(self._stdout))
                left = end - time.monotonic()
                if found is not None or self._open == 0 or left <= 0:
                    return found
                self._changed.wait(min(left, 1.0))

    def wait(self, timeout: float) -> bool:
        """Wait for its end. Returns False if `timeout` seconds pass first."""
        end = time.monotonic() + timeout
        with self._changed:
            while self._open and (left := end - time.monotonic()) > 0:
                self._changed.wait(min(left, 1.0))
            return self._open == 0

    def returncode(self) -> int:
        """Wait for the end of the process and return its exit status."""
        return self._process.wait()

    def close(self, patience: float = PATIENCE) -> None:
        """End it: close its stdin, which ends the command on the device, then kill the client. Safe to call twice."""
        close_stdin(self._process)
        try:
            self.wait(patience)
        finally:
            if self._process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(0.5 if self.ended else 0)
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()


def spawn(argv: Sequence[str], *, hint: str) -> subprocess.Popen[bytes]:
    """Start a client with three pipes in its own session, so that Ctrl-C reaches only this process, which cleans up.

    Raises:
        DeviceUnavailableError: the program cannot be started.
    """
    try:
        return subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        name = Path(argv[0]).name
        raise DeviceUnavailableError(f"{name} cannot be started ({error.strerror or error})", hint) from error


def close_stdin(process: subprocess.Popen[bytes]) -> None:
    """Close the stdin of a process that may have ended."""
    assert process.stdin is not None
    with contextlib.suppress(OSError, ValueError):
        process.stdin.close()


def end_conversation(process: subprocess.Popen[bytes]) -> None:
    """End a program that still runs: close its stdin, then kill it."""
    close_stdin(process)
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        pass
    finally:
        process.kill()
        process.wait()
