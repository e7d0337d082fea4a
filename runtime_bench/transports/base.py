"""Interface of a transport: how the bench reaches a device.

When the link fails, a transport may repeat a command that only reads or copies. It never repeats a measurement.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from compact.base.errors import ToolUnavailableError

TIMEOUT = 30.0  # seconds for a command that only reads
NO_ENVIRONMENT: Mapping[str, str] = {}


class DeviceUnavailableError(ToolUnavailableError):
    """Raised when the device cannot be reached, refuses the user, or lacks what the bench needs."""


class LinkLostError(DeviceUnavailableError):
    """Raised when the connection to the device breaks while a command runs."""


@dataclass(frozen=True)
class Completed:
    """Result of a command on the device.

    Attributes:
        returncode: exit status of the command.
        stdout: its complete output.
        stderr: its complete error output.
    """

    returncode: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """stdout as text, without line breaks at its end."""
        return self.stdout.decode("utf-8", "replace").rstrip("\r\n")


class Program(Protocol):
    """A server on the device that runs as long as this object is open.

    The device itself ends the program when the connection is lost, when `stop` is called, or at the time limit.

    Attributes:
        pid: process id on the device.
        log: path on the device of its output (stdout and stderr).
    """

    pid: int
    log: str

    @property
    def returncode(self) -> int | None:
        """The exit status. None while it runs, or if the link was lost before the status arrived."""

    @property
    def lost(self) -> bool:
        """Whether the device ended it because it lost the connection."""

    def alive(self) -> bool:
        """Return whether the program is known to run."""

    def stop(self) -> None:
        """End it and wait for its end. Safe to call twice. Does not raise for a lost link."""


class Transport(Protocol):
    """One device. It is a context manager: leaving it removes the run's directory and closes the connection.

    Attributes:
        spec: the name that users give it: `local`, `ssh:user@host:22`, `adb:SERIAL`.
        work_dir: absolute path of the run's directory on the device; it exists while the transport is open.
        emulated: the device is known to be an emulator, so its speed is not meaningful.
    """

    spec: str
    work_dir: str
    emulated: bool

    def run(self, words: Sequence[str], *, timeout: float = TIMEOUT, stdin: bytes = b"") -> Completed:
        """Run a program and wait for its end. A non-zero exit status is not an error.

        Raises:
            DeviceUnavailableError: the device cannot be reached, or the command took longer than `timeout` seconds.
            LinkLostError: the connection broke (after the transport's own retries).
        """

    def place(self, source: Path, sha256: str) -> str:
        """Make a local file available on the device and return its path there.

        If the device is this machine, that is the file itself. Otherwise it is copied once. Free space is checked
        first, and the sha256 is checked on the device. A file that is already there is not sent again.

        Raises:
            DeviceUnavailableError: too little space, or the copy differs. No partial copy remains.
            LinkLostError: the connection broke.
        """

    def place_folder(self, files: Mapping[str, tuple[Path, str]]) -> str:
        """Do the same as `place` for several files of one folder (name -> (local path, sha256)). Return its path."""

    def pull(self, remote: str, target: Path) -> None:
        """Copy a file from the device to this machine. Raises the errors of `run`."""

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
            log: name of the file in `work_dir` for its stdout and stderr.
            limit: seconds after which the device ends it in any case.
            environment: variables to set for it.

        Raises:
            DeviceUnavailableError: it cannot be started.
        """

    def converse(
        self, words: Sequence[str], *, environment: Mapping[str, str] = NO_ENVIRONMENT
    ) -> subprocess.Popen[bytes]:
        """Start a program in `work_dir` whose stdin, stdout and stderr are pipes on this machine.

        The program ends when its stdin ends. The pipes close when the link is lost.
        """

    def forward(self, port: int) -> AbstractContextManager[int]:
        """Forward a port of the device's loopback. Yields the port on this machine's loopback."""

    def clean(self) -> None:
        """Remove everything that this program has copied to the device."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
