"""Runs a native library in a child process (the parent's side).

llama.cpp aborts the process on a failed assertion, and blocks Python's signals while it works. So it runs in a child.
The child's stdout carries messages (`exporters.native.pipe_messages`). Its stderr goes to an unlinked temporary file;
if the child crashes, the error message quotes the end of that file. If the parent ends, the child reaches the end of
its stdin and exits.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import IO, Any, Self

from compact.base.child_environment import module_environment
from compact.base.errors import (
    CompactEdgeError,
    DamagedFileError,
    DataError,
    EngineCrashedError,
    GateError,
    OperatorMissingError,
    QuantizedCheckpointError,
    StorageError,
    ToolUnavailableError,
    UnsafePathError,
    UnsupportedArchitectureError,
    UsageError,
)
from exporters.native.pipe_messages import Array, TornFrameError, read_frame, write_frame

_TAIL_BYTES = 8192
_QUOTED_LINES = 3
_ERROR_MARKS = ("GGML_ASSERT", "GGML_ABORT", "terminate called", "what():", "Error:", "fatal error")
_CRASH_HINT = "the file may not work with this version of llama.cpp, or memory ran out; try a smaller context"
_BUILD_PATH = re.compile(r"\S*/llama\.cpp/(?=(?:src|ggml)/)")
_FAILURES: Mapping[str, type[CompactEdgeError]] = {
    "architecture": UnsupportedArchitectureError,
    "damaged": DamagedFileError,
    "data": DataError,
    "gate": GateError,
    "quantized": QuantizedCheckpointError,
    "operator": OperatorMissingError,
    "storage": StorageError,
    "unavailable": ToolUnavailableError,
    "unsafe": UnsafePathError,
    "usage": UsageError,
}


class NativeChild:
    """One child process that answers requests in order. Not thread-safe."""

    def __init__(self, module: str, subject: str, crash_hint: str = _CRASH_HINT, *, library: str = "llama.cpp") -> None:
        """Start the child.

        Args:
            module: main module of the child, run as `python -m MODULE`.
            subject: subject of the work (a file name), for messages.
            crash_hint: next step for the user if the child dies.
            library: name of the native library, for the message if the child dies.

        Raises:
            ToolUnavailableError: the Python interpreter cannot be started.
        """
        self._subject = subject
        self._crash_hint = crash_hint
        self._library = library
        # On POSIX the file has no name, so it disappears however this process ends.
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            # -P keeps the working directory off the child's module path, so that no file there can be imported.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=child_environment(),
            )
        except OSError as error:
            self._stderr.close()
            raise ToolUnavailableError(f"cannot start {sys.executable}: {error.strerror}") from error

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    def ask(
        self,
        header: Mapping[str, Any],
        arrays: Sequence[Array] = (),
        on_progress: Callable[[dict[str, Any]], None] | None = None,
    ) -> tuple[dict[str, Any], list[Array]]:
        """Send a request and wait for its answer.

        Args:
            header: the request. `op` is its name.
            arrays: arrays of the request.
            on_progress: called with every progress message before the answer.

        Returns:
            Header and arrays of the answer.

        Raises:
            EngineCrashedError: the child died. The message quotes its last lines.
            CompactEdgeError: the child refused. It names the error class (see `_FAILURES`).
            RuntimeError: the child raised an unexpected exception, which is a bug in compact-edge.
        """
        if self._stderr.closed:
            raise EngineCrashedError(f"{self._subject}: the native process has ended", "open the model again")
        try:
            frame = self._exchange(header, arrays, on_progress)
        except (BrokenPipeError, TornFrameError):
            frame = None
        except BaseException:
            # Interrupted during an exchange. The content of the pipe is unknown, so the child cannot be used again.
            self.kill()
            raise
        if frame is None:
            raise self._crash(str(header["op"]))
        if frame[0]["status"] != "ok":
            raise _failure(frame[0], self._subject)
        return frame

    def _exchange(
        self, header: Mapping[str, Any], arrays: Sequence[Array], on_progress: Callable[[dict[str, Any]], None] | None
    ) -> tuple[dict[str, Any], list[Array]] | None:
        assert self._process.stdin is not None and self._process.stdout is not None
        write_frame(self._process.stdin, header, arrays)
        while (frame := read_frame(self._process.stdout)) is not None and frame[0]["status"] == "progress":
            if on_progress is not None:
                on_progress(frame[0])
        return frame

    def close(self, timeout: float = 2.0) -> None:
        """End the child: close its stdin, wait up to `timeout` seconds, then kill it. Safe to call twice."""
        if self._stderr.closed:
            return
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self.kill()

    def kill(self) -> None:
        """Kill the child and reap it. Safe to call twice."""
        if self._stderr.closed:
            return
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _crash(self, operation: str) -> EngineCrashedError:
        # The pipe is closed, so the process is about to end. Kill it only if it hangs.
        try:
            code = self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        quoted = last_lines(self._stderr)
        self.kill()
        how = f"exit code {code}"
        if code < 0:
            with contextlib.suppress(ValueError):
                how = signal.Signals(-code).name
        reason = f": {quoted}" if quoted else ""
        message = f"{self._subject}: {self._library} died during {operation} ({how}){reason}"
        return EngineCrashedError(message, self._crash_hint)


class ChildEngine:
    """Base class of engines whose model is open in a child process. A context manager. Subclasses set `_child`."""

    _child: NativeChild

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error or Ctrl-C, do not wait for the child.
        if error is not None:
            self._child.kill()
        self.close()

    def close(self) -> None:
        """End the child process and reap it. Safe to call twice."""
        self._child.close()

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._child.pid


def last_lines(stderr: IO[bytes]) -> str:
    """Return the end of a child's stderr as one line: its assertions if there are any, otherwise its last lines."""
    size = stderr.seek(0, os.SEEK_END)
    stderr.seek(max(0, size - _TAIL_BYTES))
    lines = [line.strip() for line in stderr.read().decode("utf-8", "replace").splitlines() if line.strip()]
    marked = [line for line in lines if any(word in line for word in _ERROR_MARKS)]
    # An assertion contains the path of its source file on the machine that built the library. Remove it.
    return _BUILD_PATH.sub("", "; ".join((marked or lines)[-_QUOTED_LINES:]))


def child_environment() -> dict[str, str]:
    """Return the environment of a child: that of this process, its module path, and settings that keep ggml quiet."""
    environment = module_environment()
    # On a failed assertion, ggml would start a debugger for a backtrace. That is slow and prints pages.
    environment["GGML_NO_BACKTRACE"] = "1"
    return environment


def _failure(answer: Mapping[str, Any], subject: str) -> Exception:
    kind, message, hint = str(answer["kind"]), f"{subject}: {answer['message']}", answer.get("hint")
    if kind not in _FAILURES:
        return RuntimeError(f"{message} (in the native child)")
    return _FAILURES[kind](message, hint)
