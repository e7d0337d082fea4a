"""The common part of transports that have a POSIX shell on the device and a client program on this machine.

A subclass defines how one shell line reaches the device (`_argv`) and what its client's messages mean (`_explain`).
"""

from __future__ import annotations

import contextlib
import re
import secrets
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from compact.base.errors import UsageError
from compact.base.progress import SILENT, Progress
from runtime_bench.transports import scripts
from runtime_bench.transports.base import (
    NO_ENVIRONMENT,
    TIMEOUT,
    Completed,
    DeviceUnavailableError,
    LinkLostError,
)
from runtime_bench.transports.child import Child, end_conversation, spawn
from runtime_bench.transports.marks import line_after, new_mark
from runtime_bench.transports.program import WatchedProgram
from runtime_bench.transports.quoting import script_line

Result = TypeVar("Result")

# Pauses in seconds before the second and third attempt of a command that only reads or copies.
PAUSES = (0.5, 2.0)
# Seconds that a client may take in addition to the command's time, for connecting and for a slow device.
_GRACE = 25.0
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_REFUSALS = {
    "program": "the program does not exist or cannot be executed",
    "directory": "the directory of the bench cannot be used",
    "home": "the user has no home directory",
    "stdin": "the input of the program cannot be stored",
}


class ShellTransport(ABC):
    """A device with a POSIX shell. `base.Transport` documents the methods."""

    # Next step if the client is not installed.
    client_hint = ""
    # Directory on the device for all files of the bench; empty for a folder in the home directory.
    base = ""

    def __init__(self, spec: str, progress: Progress = SILENT) -> None:
        self.spec = spec
        self.work_dir = ""
        self.emulated = False
        self._progress = progress
        self._run_name = f"run-{secrets.token_hex(6)}"
        self._keeper: Child | None = None
        self._programs: list[WatchedProgram] = []
        self._conversations: list[subprocess.Popen[bytes]] = []

    @abstractmethod
    def _argv(self, line: str) -> list[str]:
        """Return the client's arguments that run one shell line on the device."""

    def _keeper_argv(self, line: str) -> list[str]:
        """As `_argv`, for the connection that stays open until the transport is closed."""
        return self._argv(line)

    @abstractmethod
    def _explain(self, stderr: str) -> DeviceUnavailableError:
        """Return the error for a message of the client about the connection."""

    @abstractmethod
    def forward(self, port: int) -> AbstractContextManager[int]:
        """See `base.Transport`."""

    @abstractmethod
    def place(self, source: Path, sha256: str) -> str:
        """See `base.Transport`."""

    @abstractmethod
    def place_folder(self, files: Mapping[str, tuple[Path, str]]) -> str:
        """See `base.Transport`."""

    @abstractmethod
    def pull(self, remote: str, target: Path) -> None:
        """See `base.Transport`."""

    # Opening and closing

    def __enter__(self) -> Self:
        try:
            self._connect()
            self._look()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _look(self) -> None:  # noqa: B027 - most subclasses need nothing
        """Read facts that are read once per device, after connecting."""

    def _connect(self) -> None:
        """Open the lasting connection and create the run's directory."""
        mark = new_mark()
        line = script_line(scripts.KEEP, [mark, self.base, self._run_name])
        keeper = Child(self._keeper_argv(line), hint=self.client_hint)
        self._keeper = keeper
        answer = keeper.wait_for(lambda text: line_after(text, mark), TIMEOUT)
        if answer is None:
            stderr = keeper.stderr if keeper.ended else "the connection timed out"
            raise self._explain(stderr)
        word, _, found = answer.partition(" ")
        if word != "ready" or not found.startswith("/"):
            reason = _REFUSALS.get(found, "its shell gave an unexpected answer")
            raise DeviceUnavailableError(f"{self.spec}: {reason}", "check that this user has a writable home directory")
        self.base = found
        self.work_dir = f"{found}/runs/{self._run_name}"

    def _disconnect(self) -> None:
        """Close the connection; the device then removes the run's directory."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.close()

    def _close(self) -> None:
        """Close everything, on this machine and on the device."""
        try:
            for program in self._programs:
                program.stop()
            for conversation in self._conversations:
                end_conversation(conversation)
        finally:
            self._disconnect()

    def _reconnect(self) -> None:
        if self._keeper is not None and self._keeper.ended:
            self._disconnect()
            self._connect()

    def _retried(self, action: Callable[[], Result]) -> Result:
        """Call `action`, and repeat it after a lost link."""
        for pause in PAUSES:
            try:
                return action()
            except LinkLostError:
                time.sleep(pause)
            with contextlib.suppress(DeviceUnavailableError):
                self._reconnect()
        return action()

    def _lost(self, stderr: str) -> LinkLostError:
        cause = self._explain(stderr)
        return LinkLostError(cause.message, cause.hint)

    # Commands

    def run(self, words: Sequence[str], *, timeout: float = TIMEOUT, stdin: bytes = b"") -> Completed:
        """See `base.Transport`."""
        return self._retried(lambda: self._run(words, timeout, stdin))

    def run_script(self, script: str, words: Sequence[str], *, timeout: float = TIMEOUT) -> Completed:
        """As `run`, for a script of this package with `words` as its `$1`, `$2`, ..."""
        return self._retried(lambda: self._run_script(script, words, timeout))

    def _run_script(self, script: str, words: Sequence[str], timeout: float) -> Completed:
        return self._run(["sh", "-c", script, "compact-edge", *words], timeout, b"", script)

    def _run(self, words: Sequence[str], timeout: float, stdin: bytes, script: str | None = None) -> Completed:
        mark = new_mark()
        # The device's limit is for a link that is lost without notice; the caller's limit is checked here.
        seconds = str(int(timeout + _GRACE))
        values = [self.work_dir, "-", str(len(stdin)), seconds, mark, program_of(words), *words]
        line = script_line(scripts.WATCH, values, inner=script)
        child = Child(self._argv(line), hint=self.client_hint)
        try:
            if stdin:
                child.write(stdin)
            started = child.wait_for(lambda text: line_after(text, mark), _GRACE)
            if started is not None and not child.wait(timeout):
                raise DeviceUnavailableError(
                    f"{self.spec}: {program_of(words)} took longer than {timeout:g} s",
                    "check whether the device is busy",
                )
        finally:
            child.close()
        return self._completed(child, mark, words)

    def _completed(self, child: Child, mark: str, words: Sequence[str]) -> Completed:
        stdout = child.stdout
        answer = line_after(stdout, mark)
        if answer is not None and answer.startswith("refused "):
            if answer == "refused program":
                return Completed(127, b"", f"{program_of(words)}: not found".encode())
            # The device removed the run's directory when the link was lost.
            if answer == "refused directory":
                raise LinkLostError(f"{self.spec}: {self.work_dir} is gone", "run the command again")
            raise DeviceUnavailableError(f"{self.spec}: {_REFUSALS.get(answer[8:], answer)}", "check its free space")
        begin = f"\n{mark} begin\n".encode()
        body, found, status = stdout.rpartition(f"\n{mark} exit ".encode())
        # The watcher ended the command because its stdin ended: one direction of a link can be lost before the other.
        ended_there = f"\n{mark} lost\n".encode() in stdout
        if ended_there or not found or not status.strip().isdigit():
            raise self._lost(child.stderr)
        return Completed(int(status), body.partition(begin)[2], child.stderr.encode())

    def start(
        self,
        words: Sequence[str],
        *,
        log: str,
        limit: float,
        environment: Mapping[str, str] = NO_ENVIRONMENT,
    ) -> WatchedProgram:
        """See `base.Transport`."""
        check_name(log)
        command = [*environment_words(environment), *words]
        mark = new_mark()
        values = [self.work_dir, f"./{log}", "0", str(max(1, int(limit))), mark, program_of(words), *command]
        child = Child(self._argv(script_line(scripts.WATCH, values)), hint=self.client_hint)
        try:
            answer = child.wait_for(lambda text: line_after(text, mark, skip="begin"), TIMEOUT)
            word, _, value = (answer or "").partition(" ")
            if answer == "refused directory":
                raise LinkLostError(f"{self.spec}: {self.work_dir} is gone", "run the command again")
            if word == "refused":
                reason = _REFUSALS.get(value, value)
                raise DeviceUnavailableError(
                    f"{self.spec}: {program_of(words)}: {reason}", "check its path on the device"
                )
            if word != "pid" or not value.isdigit():
                raise self._lost(child.stderr)
        except BaseException:
            child.close()
            raise
        program = WatchedProgram(child, int(value), f"{self.work_dir}/{log}", mark=mark, end=self._end)
        self._programs.append(program)
        return program

    def _end(self, pid: int) -> None:
        """End a process of this run by asking the device for it."""
        self.run_script(scripts.END, [str(pid), self.work_dir])

    def converse(
        self, words: Sequence[str], *, environment: Mapping[str, str] = NO_ENVIRONMENT
    ) -> subprocess.Popen[bytes]:
        """See `base.Transport`."""
        program_of(words)
        values = [self.work_dir, *environment_words(environment), *words]
        process = spawn(self._argv(script_line(scripts.CONVERSE, values)), hint=self.client_hint)
        self._conversations.append(process)
        return process

    def clean(self) -> None:
        """See `base.Transport`."""
        self.run_script(scripts.CLEAN, [self.base], timeout=120)


def program_of(words: Sequence[str]) -> str:
    """Return the program of a command. Raises UsageError for an empty command."""
    if not words or not words[0]:
        raise UsageError("a command for the device is empty")
    return words[0]


def environment_words(environment: Mapping[str, str]) -> list[str]:
    """Return the words before a command that set its environment. Raises UsageError for an invalid name."""
    for name in environment:
        if not _VARIABLE.fullmatch(name):
            raise UsageError(f"{name[:80]!a} is not a valid name of an environment variable")
    return ["env", *(f"{name}={value}" for name, value in environment.items())] if environment else []


def check_name(name: str) -> str:
    """Return a plain file name. Raises UnsafePathError for a name that leads out of its directory."""
    from compact.base.files import safe_child

    safe_child(Path(), name, "device")
    return name
