"""A server on the device that lives no longer than the object that stands for it here."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from runtime_bench.transports import scripts
from runtime_bench.transports.base import DeviceUnavailableError
from runtime_bench.transports.child import Child

if TYPE_CHECKING:
    from runtime_bench.transports.shell import ShellTransport


class WatchedProgram:
    """A program below the device's watcher (`scripts.WATCH`). See `base.Program`."""

    def __init__(self, transport: ShellTransport, child: Child, pid: int, log: str, mark: str) -> None:
        self.pid = pid
        self.log = log
        self._transport = transport
        self._child = child
        self._mark = mark
        self._stopped = False

    @property
    def returncode(self) -> int | None:
        """Its exit status; None while it runs, and where the link was lost before it could be told."""
        from runtime_bench.transports.shell import line_after

        for line in self._child.stdout.splitlines(keepends=True):
            answer = line_after(line, self._mark) or ""
            if answer.startswith("exit ") and answer[5:].isdigit():
                return int(answer[5:])
        return None

    @property
    def lost(self) -> bool:
        """Whether the device ended it because its stdin ended, other than by `stop`."""
        return not self._stopped and f"\n{self._mark} lost\n".encode() in self._child.stdout

    def alive(self) -> bool:
        """Whether it runs, as far as this end of the connection knows."""
        return self.returncode is None and not self._child.ended

    def stop(self) -> None:
        """End it and wait until it is gone. The device ends it by itself where the link is lost."""
        if self._stopped:
            return
        self._child.close()
        self._stopped = True
        if self.returncode is None:
            # The watcher has not said that the program is gone, so ask the device.
            with contextlib.suppress(DeviceUnavailableError):
                self._transport.run_script(scripts.END, [str(self.pid), self._transport.work_dir])
