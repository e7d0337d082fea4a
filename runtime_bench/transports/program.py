"""A server on the device; it ends no later than the object that represents it here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from runtime_bench.transports.base import DeviceUnavailableError
from runtime_bench.transports.child import Child
from runtime_bench.transports.marks import line_after


class WatchedProgram:
    """A program that runs under the device's watcher (`scripts.WATCH`). See `base.Program`."""

    def __init__(self, child: Child, pid: int, log: str, *, mark: str, end: Callable[[int], None]) -> None:
        """Take over a program that the watcher has started.

        Args:
            child: the client that runs the watcher.
            pid: process id on the device.
            log: path on the device of the program's output.
            mark: the prefix of the watcher's answers.
            end: ends a process by its id; raises DeviceUnavailableError if the device cannot be asked.
        """
        self.pid = pid
        self.log = log
        self._child = child
        self._mark = mark
        self._end = end
        self._stopped = False

    @property
    def returncode(self) -> int | None:
        """The exit status. None while it runs, or if the link was lost before the status arrived."""
        for line in self._child.stdout.splitlines(keepends=True):
            answer = line_after(line, self._mark) or ""
            if answer.startswith("exit ") and answer[5:].isdigit():
                return int(answer[5:])
        return None

    @property
    def lost(self) -> bool:
        """Whether the device ended it because its stdin ended without `stop`."""
        return not self._stopped and f"\n{self._mark} lost\n".encode() in self._child.stdout

    def alive(self) -> bool:
        """Return whether the program is known to run."""
        return self.returncode is None and not self._child.ended

    def stop(self) -> None:
        """End it and wait until it has ended. If the link is lost, the device ends it."""
        if self._stopped:
            return
        self._child.close()
        self._stopped = True
        if self.returncode is None:
            # The watcher has not reported the end of the program, so ask the device.
            with contextlib.suppress(DeviceUnavailableError):
                self._end(self.pid)
