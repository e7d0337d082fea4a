"""The transports by the name that a user gives to a device."""

from __future__ import annotations

import sys

from compact.base.errors import UsageError
from compact.base.progress import SILENT, Progress
from runtime_bench.transports.base import Transport

GRAMMAR = "write local, ssh:user@host, ssh:user@host:port, or adb:SERIAL"


def open_transport(spec: str, progress: Progress = SILENT) -> Transport:
    """Return the transport of `local`, `ssh:[user@]host[:port]` or `adb[:SERIAL]`; entering it connects.

    Args:
        spec: the device; an IPv6 address is in brackets.
        progress: receives a task for every file that is copied.

    Raises:
        UsageError: `spec` has another form; the hint shows the grammar.
    """
    kind, colon, rest = spec.partition(":")
    if spec == "local":
        if sys.platform == "win32":
            from runtime_bench.transports.windows import WindowsTransport

            return WindowsTransport(progress)
        from runtime_bench.transports.local import LocalTransport

        return LocalTransport(progress)
    if kind == "ssh" and colon:
        from runtime_bench.transports.ssh import SshTransport

        return SshTransport(rest, progress)
    if kind == "adb" and (rest or not colon):
        from runtime_bench.transports.adb import AdbTransport

        return AdbTransport(rest, progress)
    raise UsageError(f"device '{ascii(spec[:80])[1:-1]}' is not known", GRAMMAR)
