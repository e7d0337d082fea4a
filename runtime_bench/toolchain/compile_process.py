"""A long compilation in its own process group: its progress, its error lines, and its end.

Ninja and make run compilers as grandchildren. When a build ends early all of them are ended, so that no compiler writes
into a folder that is being removed.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from compact.base.errors import DiskFullError, ToolUnavailableError
from compact.base.progress import Progress, Task

_NINJA = re.compile(r"^\[(\d+)/(\d+)\] ")
_MAKE = re.compile(r"^\[ *(\d+)%\] ")
_TELLING = re.compile(r"error:|CMake Error|undefined reference|cannot find -l|Killed|No space left|^ERROR\b|not found$")
# Text in an error line -> next step.
_HINTS = (
    ("cannot find -l", "install the static C and C++ libraries (Fedora: dnf install glibc-static libstdc++-static)"),
    ("Killed", "memory ran out; try --jobs 1"),
)
_SECONDS_TO_END = 5.0
_QUOTED_LINES = 2
_LONGEST_LINE = 300
# Variables of a user's shell that would change the binaries.
_FOREIGN = ("CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "ASMFLAGS", "NINJA_STATUS", "MAKEFLAGS", "MFLAGS", "CPATH")


class CompileFailedError(ToolUnavailableError):
    """Raised when a compilation fails; the message quotes the error lines."""


def build_environment() -> dict[str, str]:
    """Return this process's environment without variables that would change the binaries, and without git.

    llama.cpp asks git for its commit. Unpacked inside another repository it would record the commit of that one.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in _FOREIGN and not name.startswith(("CMAKE_", "LLAMA_", "GGML_"))
    }
    # LC_ALL: the tools' output is parsed below.
    return {**kept, "GIT_DIR": os.devnull, "LC_ALL": "C"}


def run_compile(
    words: Sequence[str],
    what: str,
    *,
    progress: Progress,
    environment: Mapping[str, str],
    directory: Path,
    hint: str,
) -> list[str]:
    """Run a build tool to its end and return its last lines.

    Args:
        words: program and arguments.
        what: name of the step, for the progress bar and for messages.
        progress: receives a task as soon as the tool prints its progress (`[12/345]` of Ninja, `[ 42%]` of make).
        environment: of the tool.
        directory: working directory of the tool.
        hint: the next step for a user whose build failed.

    Raises:
        ToolUnavailableError: the program cannot be started.
        CompileFailedError: it ended with an error.
        DiskFullError: the disk is full.
    """
    last: deque[str] = deque(maxlen=200)
    telling: list[str] = []
    try:
        process = subprocess.Popen(
            list(words),
            cwd=directory,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # Ctrl-C at a terminal goes to the whole foreground group. This group gets its signal from `_end` only.
            start_new_session=True,
        )
    except OSError as error:
        raise ToolUnavailableError(f"cannot start {words[0]}: {error.strerror}", hint) from error
    try:
        with ExitStack() as stack:
            counter = _Counter(what, progress, stack)
            assert process.stdout is not None
            for raw in process.stdout:
                line = raw.decode("utf-8", "replace").rstrip()
                counter.read(line)
                last.append(line)
                if len(telling) < _QUOTED_LINES and _TELLING.search(line):
                    telling.append(line.strip()[:_LONGEST_LINE])
            status = process.wait()
    except BaseException:
        _end(process)
        raise
    if status != 0:
        shown = telling or [line for line in last if line][-_QUOTED_LINES:] or ["no output"]
        text = "; ".join(shown)
        if "No space left on device" in text:
            raise DiskFullError(
                f"{what}: the disk is full", "free some space, or set COMPACT_EDGE_CACHE to another disk"
            )
        better = next((step for mark, step in _HINTS if mark in text), hint)
        raise CompileFailedError(f"{what} failed (exit status {status}): {text}", better)
    return list(last)


class _Counter:
    """Converts the numbers at the start of a build tool's lines to one progress task."""

    def __init__(self, what: str, progress: Progress, stack: ExitStack) -> None:
        self._what, self._progress, self._stack = what, progress, stack
        self._task: Task | None = None
        self._done = self._total = 0

    def read(self, line: str) -> None:
        if found := _NINJA.match(line):
            done, total, unit = int(found[1]), int(found[2]), "files"
        elif found := _MAKE.match(line):
            done, total, unit = int(found[1]), 100, "percent"
        else:
            return
        if self._task is None:
            self._total = total
            self._task = self._stack.enter_context(self._progress.task(self._what, total, unit))
        done = min(done, self._total)
        if done > self._done:
            self._task.advance(done - self._done)
            self._done = done


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the whole process group, first with SIGTERM, and wait."""
    for number, patience in ((signal.SIGTERM, _SECONDS_TO_END), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
        if not _group_lives(process.pid):
            break
    if process.stdout is not None:
        process.stdout.close()


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except OSError:
        return False
    return True
