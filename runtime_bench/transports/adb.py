"""An Android device over the `adb` client (Android 7 or later: shell protocol v2).

`adb shell` joins its arguments with spaces and passes them to the device's sh, so it gets one quoted line. Shell
protocol v2 transmits the end of stdin, a separate stderr and the exit status. The scripts transmit status and stdin
themselves, but they need the end of stdin to end programs after a lost connection.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from compact.base.errors import UsageError
from compact.base.progress import SILENT, Progress, Task
from runtime_bench.transports.base import TIMEOUT, Completed, DeviceUnavailableError
from runtime_bench.transports.child import Child
from runtime_bench.transports.remote import RemoteTransport, last_line

GRAMMAR = "write adb:SERIAL with a serial of `adb devices`, or adb alone where only one device is connected"
_CLIENT_HINT = "install adb (Debian: apt install adb; macOS: brew install android-platform-tools)"

# Letters, digits, and the characters of addresses (192.168.0.7:5555), emulators (emulator-5554) and mDNS names.
_SERIAL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:%\[\]-]{0,127}")

_NO_USB_RIGHTS = (
    "may not be opened by this user",
    "add a udev rule for it (Debian: apt install android-sdk-platform-tools-common), then replug it",
)
_NOT_THERE = ("is not connected", "see `adb devices`; switch on USB debugging in the developer options")
_NO_SERVER = ("adb's server cannot be reached", "run `adb start-server` and see what it says")
_NOT_ANDROID = ("has not started Android", "start Android on it")
# Part of a message of adb: its meaning and the next step. The first match counts.
_MEANINGS = {
    "unauthorized": (
        "has not allowed this computer",
        "unlock its screen and accept the question of USB debugging",
    ),
    "no permissions": _NO_USB_RIGHTS,
    "insufficient permissions": _NO_USB_RIGHTS,
    "offline": ("is offline", "replug it or run `adb reconnect offline`, and see `adb devices`"),
    "not found": _NOT_THERE,
    "no devices": _NOT_THERE,
    "more than one": ("several devices are connected", "name one: adb:SERIAL with a serial of `adb devices`"),
    "connect to daemon": _NO_SERVER,
    "start daemon": _NO_SERVER,
    "recovery": _NOT_ANDROID,
    "sideload": _NOT_ANDROID,
    "bootloader": _NOT_ANDROID,
}
_LINK = re.compile(
    r"device (?:'[^']*' )?(?:offline|not found)|no devices|unauthorized|closed|protocol fault|connection reset|"
    r"cannot connect|failed to read|connect failed|broken pipe|no such device",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class AdbDevice:
    """A line of `adb devices -l`.

    Attributes:
        serial: its name for `adb -s`.
        state: `device` for a usable device; otherwise `unauthorized`, `offline`, `no permissions`, ...
        model: as adb prints it; None if it prints none.
    """

    serial: str
    state: str
    model: str | None


def ask_adb(arguments: Sequence[str], *, timeout: float = TIMEOUT) -> Completed:
    """Run the client and wait. A non-zero exit status is not an error.

    Raises:
        DeviceUnavailableError: adb is not installed, or took longer than `timeout` seconds.
    """
    child = Child(["adb", *arguments], hint=_CLIENT_HINT)
    try:
        child.end_stdin()
        if not child.wait(timeout):
            raise DeviceUnavailableError(f"adb {arguments[0]} took longer than {timeout:g} s", "try `adb kill-server`")
        return Completed(child.returncode(), child.stdout, child.stderr.encode())
    finally:
        child.close(patience=0)


def list_devices() -> tuple[AdbDevice, ...]:
    """Return all devices that adb lists.

    Raises DeviceUnavailableError if adb is missing or its server does not start.
    """
    answer = ask_adb(["devices", "-l"])
    if answer.returncode != 0:
        raise explain(answer.stderr.decode("utf-8", "replace"), "adb")
    return parse_devices(answer.text)


def parse_devices(text: str) -> tuple[AdbDevice, ...]:
    """Parse the output of `adb devices -l`; other lines are ignored."""
    _, _, table = text.partition("List of devices attached")
    devices = []
    for line in table.splitlines():
        serial, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if not rest or serial.startswith("*"):
            continue
        state = "no permissions" if rest.startswith("no permissions") else rest.split()[0]
        model = next((word[6:] for word in rest.split() if word.startswith("model:")), None)
        devices.append(AdbDevice(serial, state, model))
    return tuple(devices)


def explain(stderr: str, spec: str) -> DeviceUnavailableError:
    """Return the error for a message of adb about a device."""
    low = stderr.lower()
    for text, (meaning, hint) in _MEANINGS.items():
        if text in low:
            return DeviceUnavailableError(f"{spec}: {meaning}", hint)
    reason = last_line(stderr)
    return DeviceUnavailableError(
        f"{spec}: the connection was lost" + (f" ({reason})" if reason else ""), "see `adb devices`"
    )


class AdbTransport(RemoteTransport):
    """See `base.Transport`."""

    client_hint = _CLIENT_HINT
    base = "/data/local/tmp/compact-edge"

    def __init__(self, serial: str, progress: Progress = SILENT) -> None:
        """Open a device by its serial; an empty serial means the only device. Raises UsageError."""
        if serial and not _SERIAL.fullmatch(serial):
            raise UsageError(f"device 'adb:{ascii(serial[:80])[1:-1]}' is not a serial of adb", GRAMMAR)
        self._serial = serial
        super().__init__(f"adb:{serial}" if serial else "adb", progress)

    def _client(self) -> list[str]:
        return ["adb", "-s", self._serial]

    def _argv(self, line: str) -> list[str]:
        return [*self._client(), "shell", line]

    def _explain(self, stderr: str) -> DeviceUnavailableError:
        return explain(stderr, self.spec)

    def _connect(self) -> None:
        if not self._serial:
            self._serial = _only_device().serial
            self.spec = f"adb:{self._serial}"
        state = ask_adb([*self._client()[1:], "get-state"])
        if state.returncode != 0 or state.text != "device":
            raise self._explain(state.stderr.decode("utf-8", "replace") or state.text)
        super()._connect()

    def _look(self) -> None:
        names = ("ro.kernel.qemu", "ro.boot.qemu")
        self.emulated = self._serial.startswith("emulator-") or any(
            self.run(["getprop", name]).text == "1" for name in names
        )

    def _send(self, source: Path, remote: str, task: Task, timeout: float) -> None:
        self._copy_files(["push", str(source.absolute()), remote], source.name, timeout)
        task.advance(source.stat().st_size)

    def _fetch(self, remote: str, target: Path, timeout: float) -> None:
        self._copy_files(["pull", remote, str(target.absolute())], remote, timeout)

    def _copy_files(self, arguments: Sequence[str], name: str, timeout: float) -> None:
        answer = ask_adb([*self._client()[1:], *arguments], timeout=timeout)
        if answer.returncode == 0:
            return
        # adb writes the reason for a failed copy to stdout or stderr, depending on its version.
        output = "\n".join(part.decode("utf-8", "replace") for part in (answer.stdout, answer.stderr))
        # The run's directory receives the copy. It is missing only after the link that kept it was lost.
        gone = arguments[0] == "push" and "No such file or directory" in output
        if gone or _LINK.search(output) or not output.strip():
            raise self._lost("" if gone else output)
        raise DeviceUnavailableError(
            f"{self.spec}: {name} cannot be copied ({last_line(output)})", "check the device's free space"
        )

    @contextmanager
    def forward(self, port: int) -> Iterator[int]:
        """See `base.Transport`."""
        answer = ask_adb([*self._client()[1:], "forward", "tcp:0", f"tcp:{port}"])
        local = answer.text.strip()
        if answer.returncode != 0 or not local.isdigit():
            raise self._lost(answer.stderr.decode("utf-8", "replace"))
        try:
            yield int(local)
        finally:
            with contextlib.suppress(DeviceUnavailableError):
                ask_adb([*self._client()[1:], "forward", "--remove", f"tcp:{local}"])


def _only_device() -> AdbDevice:
    devices = list_devices()
    if not devices:
        raise explain("no devices", "adb")
    if len(devices) > 1:
        names = ", ".join(device.serial for device in devices)
        raise DeviceUnavailableError(f"adb: several devices are connected ({names})", "name one: adb:SERIAL")
    return devices[0]
