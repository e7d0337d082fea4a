"""What the bench asks of a way to a device.

A transport may repeat a command that only looks or copies when the link fails; it never repeats a measurement.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from compact.errors import ToolUnavailableError

TIMEOUT = 30.0  # seconds for a command that only looks
NO_ENVIRONMENT: Mapping[str, str] = {}


class DeviceUnavailableError(ToolUnavailableError):
    """The device is not there, refuses the user, or lacks what the bench needs."""


class LinkLostError(DeviceUnavailableError):
    """The connection to the device broke while something ran there."""


@dataclass(frozen=True)
class Completed:
    """A command that has ended on the device.

    Attributes:
        returncode: the command's own exit status.
        stdout: everything it wrote.
        stderr: everything it wrote.
    """

    returncode: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """stdout as text without the line end."""
        return self.stdout.decode("utf-8", "replace").rstrip("\r\n")


class Program(Protocol):
    """A server that runs on the device for as long as this object is open, and no longer.

    The device itself ends the program when the connection is lost, when `stop` is called, or at the time limit.

    Attributes:
        pid: process id on the device.
        log: path on the device of what it writes to stdout and stderr.
    """

    pid: int
    log: str

    @property
    def returncode(self) -> int | None:
        """Its exit status; None while it runs, and where the link was lost before it could be told."""

    @property
    def lost(self) -> bool:
        """Whether the device ended it because it lost sight of this end."""

    def alive(self) -> bool:
        """Whether it runs, as far as this end of the connection knows."""

    def stop(self) -> None:
        """End it, wait until it is gone, and return. Safe to call twice. Never raises for a lost link."""


class Transport(Protocol):
    """One device. A context manager: leaving it removes the run's own directory and closes the connection.

    Attributes:
        spec: how the user names it: `local`, `ssh:user@host:22`, `adb:SERIAL`.
        work_dir: a directory of this run on the device, absolute; exists while the transport is open.
        emulated: the device is known to be an emulator, whose speed means nothing.
    """

    spec: str
    work_dir: str
    emulated: bool

    def run(self, words: Sequence[str], *, timeout: float = TIMEOUT, stdin: bytes = b"") -> Completed:
        """Run a program and wait. A non-zero exit status is an answer, not an error.

        Raises:
            DeviceUnavailableError: the device cannot be reached, or the command took longer than `timeout` seconds.
            LinkLostError: the connection broke (after the transport's own retries).
        """

    def place(self, source: Path, sha256: str) -> str:
        """Make a local file available on the device and return its path there.

        On this machine that is the file itself. Elsewhere it is copied once: free space is checked first, the sha256
        is checked on the device, and a file that is there already is not sent again.

        Raises:
            DeviceUnavailableError: too little space, or the copy differs; nothing is left of it.
            LinkLostError: as `run`.
        """

    def place_folder(self, files: Mapping[str, tuple[Path, str]]) -> str:
        """As `place` for several files of one folder (name -> local path, sha256); returns the folder's path."""

    def pull(self, remote: str, target: Path) -> None:
        """Copy a file of the device here. Raises as `run`."""

    def start(
        self,
        words: Sequence[str],
        *,
        log: str,
        limit: float,
        environment: Mapping[str, str] = NO_ENVIRONMENT,
    ) -> Program:
        """Start a server in `work_dir`.

        Args:
            words: program and arguments.
            log: name of a file in `work_dir` that takes stdout and stderr.
            limit: seconds after which the device ends it whatever happens.
            environment: variables that are set for it.

        Raises:
            DeviceUnavailableError: it cannot be started.
        """

    def converse(
        self, words: Sequence[str], *, environment: Mapping[str, str] = NO_ENVIRONMENT
    ) -> subprocess.Popen[bytes]:
        """Start a program in `work_dir` whose stdin and stdout are pipes here; its stderr comes here too.

        The program ends when its stdin does. Where the link is lost the pipes close.
        """

    def forward(self, port: int) -> AbstractContextManager[int]:
        """Reach a port of the device's loopback: yields a port of this machine's loopback."""

    def clean(self) -> None:
        """Remove everything that this program ever put on the device."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
