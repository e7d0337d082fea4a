"""A device over OpenSSH: Linux, macOS or another system with a POSIX shell. Nothing is installed on the device.

The client's configuration defines keys, known hosts, jump hosts and aliases. `COMPACT_EDGE_SSH_CONFIG` names a file to
use in place of `~/.ssh/config`. One connection stays open and carries all others (`ControlMaster`), except on Windows,
whose OpenSSH does not support that. Files are streamed through `cat` on the device. Unlike scp, whose two protocols
quote names differently, that needs no additional quoting and no sftp server, and it shows the progress.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compact.base.errors import UsageError
from compact.base.files import CHUNK, as_storage_error
from compact.base.progress import SILENT, Progress, Task
from runtime_bench.transports import scripts
from runtime_bench.transports.base import TIMEOUT, DeviceUnavailableError
from runtime_bench.transports.child import Child, close_stdin, spawn
from runtime_bench.transports.marks import line_after, new_mark
from runtime_bench.transports.quoting import script_line
from runtime_bench.transports.remote import RemoteTransport, last_line

CONFIG = "COMPACT_EDGE_SSH_CONFIG"
GRAMMAR = "write ssh:host, ssh:user@host or ssh:user@host:port; an IPv6 address in brackets: ssh:user@[::1]:22"
# A lost link is detected after INTERVAL times COUNT seconds.
_INTERVAL, _COUNT, _CONNECT = 5, 3, 10

_OPTIONS = (
    "BatchMode=yes",
    f"ConnectTimeout={_CONNECT}",
    f"ServerAliveInterval={_INTERVAL}",
    f"ServerAliveCountMax={_COUNT}",
    # Options that a user's configuration may set and a command in the background must not have.
    "RequestTTY=no",
    "RemoteCommand=none",
    "PermitLocalCommand=no",
    "ForwardX11=no",
    "ForwardAgent=no",
    "LogLevel=ERROR",
    "ControlPersist=no",
)
_USER = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.+-]*\$?")
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")
_IPV6 = re.compile(r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:%[A-Za-z0-9_.-]+)?")

_MEANINGS = (
    ("permission denied", "refuses this user", "make `ssh {host} true` work without a password (see ssh-copy-id)"),
    ("too many authentication failures", "refuses this user", "name the key in your ssh configuration"),
    ("host key verification failed", "has an unknown or changed host key",
     "run `ssh {host}` once and check the key"),
    ("could not resolve hostname", "no such host", "check its name, or use its address"),
    ("connection refused", "does not run an ssh server at this port", "start sshd there, or name its port"),
    ("timed out", "does not answer", "check that it is switched on and in this network"),
    ("no route to host", "does not answer", "check that it is switched on and in this network"),
    ("network is unreachable", "does not answer", "check the network of this machine"),
)  # fmt: skip


def parse_address(text: str) -> tuple[str | None, str, int | None]:
    """Return user, host and port of `[user@]host[:port]`. Raises UsageError with the valid forms."""
    user, at, rest = text.rpartition("@")
    if rest.startswith("["):
        host, bracket, after = rest[1:].partition("]")
        known = bool(bracket) and _IPV6.fullmatch(host) is not None
        port_text = after[1:] if after.startswith(":") else None
        known = known and (not after or port_text is not None)
    else:
        host, colon, port = rest.partition(":")
        port_text = port if colon else None
        known = _HOST.fullmatch(host) is not None
    if not known or (at and not _USER.fullmatch(user)):
        raise UsageError(f"device 'ssh:{ascii(text[:80])[1:-1]}' is not an ssh address", GRAMMAR)
    if port_text is None:
        return user or None, host, None
    if not (port_text.isascii() and port_text.isdigit() and len(port_text) <= 5 and 1 <= int(port_text) <= 65535):
        raise UsageError(f"device 'ssh:{ascii(text[:80])[1:-1]}': the port must be 1 to 65535", GRAMMAR)
    return user or None, host, int(port_text)


class SshTransport(RemoteTransport):
    """See `base.Transport`."""

    client_hint = "install OpenSSH's client (Debian: apt install openssh-client; Windows: an optional feature)"

    def __init__(self, address: str, progress: Progress = SILENT) -> None:
        """A device at `[user@]host[:port]`. Raises UsageError."""
        self._user, self._host, self._port = parse_address(address)
        self._control: Path | None = None
        super().__init__(f"ssh:{address}", progress)

    def _client(self, *options: str) -> list[str]:
        argv = ["ssh"]
        if config := os.environ.get(CONFIG):
            argv += ["-F", config]
        for option in (*_OPTIONS, *options):
            argv += ["-o", option]
        if self._user is not None:
            argv += ["-l", self._user]
        if self._port is not None:
            argv += ["-p", str(self._port)]
        return argv

    def _argv(self, line: str) -> list[str]:
        path = "none" if self._control is None else str(self._control / "s")
        return [
            *self._client("ClearAllForwardings=yes", "ControlMaster=no", f"ControlPath={path}"),
            "--",
            self._host,
            line,
        ]

    def _keeper_argv(self, line: str) -> list[str]:
        if self._control is None:
            return self._argv(line)
        options = ("ClearAllForwardings=yes", "ControlMaster=yes", f"ControlPath={self._control / 's'}")
        return [*self._client(*options), "--", self._host, line]

    def _connect(self) -> None:
        if sys.platform != "win32" and self._control is None:
            # A short path: the name of a socket has at most about 100 characters, and TMPDIR may be long.
            short = Path("/tmp")  # noqa: S108 - mkdtemp makes a private directory there
            self._control = Path(tempfile.mkdtemp(prefix="ce-", dir=short if short.is_dir() else None))
        if self._control is not None:
            (self._control / "s").unlink(missing_ok=True)
        super()._connect()

    def _close(self) -> None:
        try:
            super()._close()
        finally:
            if self._control is not None:
                shutil.rmtree(self._control, ignore_errors=True)
                self._control = None

    def _explain(self, stderr: str) -> DeviceUnavailableError:
        low = stderr.lower()
        host = self._host if self._user is None else f"{self._user}@{self._host}"
        for text, meaning, hint in _MEANINGS:
            if text in low:
                return DeviceUnavailableError(f"{self.spec}: {meaning}", hint.format(host=host))
        reason = last_line(stderr)
        return DeviceUnavailableError(
            f"{self.spec}: the connection was lost" + (f" ({reason})" if reason else ""), f"try `ssh {host} true`"
        )

    def _send(self, source: Path, remote: str, task: Task, timeout: float) -> None:
        mark = new_mark()
        child = Child(self._argv(script_line(scripts.STORE, [mark, remote])), hint=self.client_hint)
        try:
            with source.open("rb") as file:
                while block := file.read(CHUNK):
                    if not child.write(block):
                        break
                    task.advance(len(block))
            child.end_stdin()
            answer = child.wait_for(lambda text: line_after(text, mark), timeout)
        except OSError as error:
            raise as_storage_error(error, source) from error
        finally:
            child.close()
        if answer is None:
            raise self._lost(child.stderr)
        if answer != "stored 0":
            raise DeviceUnavailableError(
                f"{self.spec}: {source.name} cannot be written ({last_line(child.stderr)})",
                "free some space on the device",
            )

    def _fetch(self, remote: str, target: Path, timeout: float) -> None:
        mark = new_mark()
        process = spawn(self._argv(script_line(scripts.FETCH, [mark, remote])), hint=self.client_hint)
        assert process.stdout is not None and process.stderr is not None
        try:
            begin = f"{mark} begin".encode()
            while (line := process.stdout.readline()) and line.rstrip(b"\r\n") != begin:
                pass
            with target.open("wb") as file:
                shutil.copyfileobj(process.stdout, file, CHUNK)
            stderr = process.stderr.read().decode("utf-8", "replace")
            code = process.wait(timeout)
        finally:
            close_stdin(process)
            process.kill()
            process.wait()
            process.stdout.close()
            process.stderr.close()
        if code == 66:
            raise DeviceUnavailableError(f"{self.spec}: {remote} cannot be read on the device", "check its path")
        if code != 0:
            raise self._lost(stderr)

    @contextmanager
    def forward(self, port: int) -> Iterator[int]:
        """See `base.Transport`. It uses a separate connection, which ends with the block in any case."""
        child, local = self._forwarded(port)
        try:
            yield local
        finally:
            child.close()

    def _forwarded(self, port: int) -> tuple[Child, int]:
        # Another program may take the free port before ssh does, so try several times.
        for attempt in range(3):
            local = _free_port()
            mark = new_mark()
            argv = [
                *self._client("ControlMaster=no", "ControlPath=none", "ExitOnForwardFailure=yes"),
                *("-L", f"127.0.0.1:{local}:127.0.0.1:{port}"),
                *("--", self._host, script_line(scripts.HOLD, [mark])),
            ]
            child = Child(argv, hint=self.client_hint)
            try:
                if child.wait_for(lambda text, mark=mark: line_after(text, mark), TIMEOUT) is not None:  # type: ignore[misc]
                    return child, local
            except BaseException:
                child.close()
                raise
            child.close()
            if attempt == 2 or "cannot listen" not in child.stderr.lower():
                break
        raise self._lost(child.stderr)


def _free_port() -> int:
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
