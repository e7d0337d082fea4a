"""A stand-in for `adb` with one device that is a directory: /data/local/tmp of the shell lands below it.

`install(directory, monkeypatch)` puts an executable `adb` on PATH, which is this file. It knows `devices [-l]`,
`get-state`, `push`, `pull`, `shell` and `forward` as adb documents them, refuses any other words, and keeps every call
in `calls.jsonl`. `shell` hands one string to sh with stdin, stdout, stderr and the exit status passed through, as
shell protocol v2 does; real adb joins several words with spaces, so more than one word is refused as a mistake.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

_VARIABLE = "ADB_STANDIN"
_SERIAL = "STANDIN0001"
_DEVICE_TMP = "/data/local/tmp"


@dataclass(frozen=True)
class Standin:
    """What a test may say to the installed stand-in, and ask of it.

    Attributes:
        directory: its settings and records.
        root: the device's files; its /data/local/tmp is `root / "data/local/tmp"`.
        serial: of its one device.
    """

    directory: Path
    root: Path
    serial: str = _SERIAL

    @property
    def spec(self) -> str:
        return f"adb:{self.serial}"

    @property
    def base(self) -> Path:
        """Where the bench puts its files."""
        return self.root / "data/local/tmp/compact-edge"

    def set(self, **settings: Any) -> None:
        """Change settings.

        `devices`: serial -> state; `properties`: for getprop; `damage`: pushed files get another byte;
        `offline`: every command about the device fails; `fail_pushes`: as many pushes lose the link half way;
        `push_error`: text of a push that the device refuses.
        """
        _write(self.directory / "settings.json", {**_settings(self.directory), **settings})

    def calls(self) -> list[list[str]]:
        """Every command line so far."""
        path = self.directory / "calls.jsonl"
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []

    def cut(self) -> int:
        """Drop the link: every client that runs dies, and the device sees the end of its stdin. How many it was."""
        count = 0
        for path in (self.directory / "clients").iterdir():
            try:
                os.kill(int(path.name), signal.SIGKILL)
                count += 1
            except ProcessLookupError:
                pass
            path.unlink(missing_ok=True)
        return count


def install(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Standin:
    """Put the stand-in on PATH, its device empty and connected."""
    program = directory / "bin" / "adb"
    program.parent.mkdir(parents=True)
    (directory / "clients").mkdir()
    root = directory / "device"
    (root / _DEVICE_TMP[1:]).mkdir(parents=True)
    program.write_text(f"#!{sys.executable} -P\n{Path(__file__).read_text('utf-8')}", "utf-8")
    program.chmod(0o755)
    getprop = directory / "device-bin" / "getprop"
    getprop.parent.mkdir()
    getprop.write_text(f'#!/bin/sh\nexec "{program}" standin-getprop "$@"\n', "utf-8")
    getprop.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setenv(_VARIABLE, str(directory))
    standin = Standin(directory, root)
    standin.set(devices={_SERIAL: "device"})
    return standin


# From here on: the program.


def _settings(directory: Path) -> dict[str, Any]:
    path = directory / "settings.json"
    settings: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return settings


def _write(path: Path, value: Any) -> None:
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(value), "utf-8")
    part.replace(path)


def _fail(text: str) -> int:
    sys.stderr.write(text + "\n")
    return 1


def _below(root: Path, remote: str) -> Path:
    """A path of the device as one of this machine; what the shell told of is one already."""
    return Path(remote) if remote.startswith(str(root)) else root / remote.lstrip("/")


def _run_shell(directory: Path, root: Path, line: str) -> int:
    # The device's fixed directory is the only path that a line names by itself; all else comes from answers.
    line = re.sub(rf"(?<![A-Za-z0-9_./-]){_DEVICE_TMP}", str(root / _DEVICE_TMP[1:]), line)
    environment = {**os.environ, "PATH": f"{directory / 'device-bin'}:{os.environ['PATH']}"}
    pipe = subprocess.PIPE
    # All three streams pass through this process, so that nothing arrives any more when it is killed.
    device = subprocess.Popen(
        ["sh", "-c", line], stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True, env=environment, bufsize=0
    )
    assert device.stdin is not None and device.stdout is not None and device.stderr is not None
    threading.Thread(target=_pass, args=(0, device.stdin.fileno(), True), daemon=True).start()
    answers = [
        threading.Thread(target=_pass, args=(source.fileno(), target, False), daemon=True)
        for source, target in ((device.stdout, 1), (device.stderr, 2))
    ]
    for answer in answers:
        answer.start()
    for answer in answers:
        answer.join()
    return device.wait()


def _pass(source: int, target: int, close: bool) -> None:
    try:
        while block := os.read(source, 1 << 16):
            while block:
                block = block[os.write(target, block) :]
    except OSError:
        pass
    if close:
        os.close(target)


def _copy(source: Path, target: Path, settings: dict[str, Any]) -> None:
    if settings.get("damage"):
        data = bytearray(source.read_bytes())
        data[len(data) // 2] ^= 1
        target.write_bytes(data)
    else:
        shutil.copyfile(source, target)


def _push(directory: Path, root: Path, settings: dict[str, Any], source: str, remote: str) -> int:
    target = _below(root, remote)
    if settings.get("push_error"):
        return _fail(f"adb: error: failed to copy '{source}' to '{remote}': {settings['push_error']}")
    if settings.get("fail_pushes"):
        _write(directory / "settings.json", {**settings, "fail_pushes": settings["fail_pushes"] - 1})
        target.write_bytes(Path(source).read_bytes()[: Path(source).stat().st_size // 2])
        return _fail(f"adb: error: failed to copy '{source}' to '{remote}': failed to read copy response")
    if not target.parent.is_dir():
        reason = "remote couldn't create file: No such file or directory"
        return _fail(f"adb: error: failed to copy '{source}' to '{remote}': {reason}")
    _copy(Path(source), target, settings)
    sys.stdout.write(f"{source}: 1 file pushed.\n")
    return 0


def _pull(root: Path, settings: dict[str, Any], remote: str, target: str) -> int:
    source = _below(root, remote)
    if not source.is_file():
        return _fail(f"adb: error: failed to stat remote object '{remote}': No such file or directory")
    _copy(source, Path(target), settings)
    sys.stdout.write(f"{remote}: 1 file pulled.\n")
    return 0


def _answer(directory: Path, words: list[str]) -> int:
    settings = _settings(directory)
    root = directory / "device"
    devices: dict[str, str] = settings["devices"]
    if words[:1] == ["standin-getprop"]:
        sys.stdout.write(settings.get("properties", {}).get(words[1] if words[1:] else "", "") + "\n")
        return 0
    if words[:1] == ["devices"]:
        detail = " product:standin model:Stand_in device:standin transport_id:1" if words[1:] == ["-l"] else ""
        sys.stdout.write("List of devices attached\n")
        for serial, state in devices.items():
            sys.stdout.write(f"{serial:<22} {state}{detail if state == 'device' else ''}\n")
        sys.stdout.write("\n")
        return 0
    if words[:1] != ["-s"] or len(words) < 3:
        return _fail(f"stand-in: unexpected words {words}")
    serial, command, *rest = words[1:]
    if serial not in devices:
        return _fail(f"error: device '{serial}' not found")
    if settings.get("offline") or devices[serial] == "offline":
        return _fail("error: device offline")
    if devices[serial] == "unauthorized":
        return _fail(
            "error: device unauthorized.\nThis adb server's $ADB_VENDOR_KEYS is not set\nTry 'adb kill-server'"
        )
    if devices[serial].startswith("no permissions"):
        return _fail(f"error: insufficient permissions for device: {devices[serial]}")
    if command == "get-state" and not rest:
        sys.stdout.write(devices[serial] + "\n")
        return 0
    if command == "shell" and len(rest) == 1:
        return _run_shell(directory, root, rest[0])
    if command == "push" and len(rest) == 2:
        return _push(directory, root, settings, *rest)
    if command == "pull" and len(rest) == 2:
        return _pull(root, settings, *rest)
    if command == "forward" and rest[:1] == ["tcp:0"] and len(rest) == 2:
        # The device is this machine, so its ports are those here.
        sys.stdout.write(rest[1].removeprefix("tcp:") + "\n")
        return 0
    if command == "forward" and rest[:1] == ["--remove"] and len(rest) == 2:
        return 0
    return _fail(f"stand-in: unexpected words {words}")


def _main() -> int:
    directory = Path(os.environ[_VARIABLE])
    words = sys.argv[1:]
    with (directory / "calls.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(words) + "\n")
    client = directory / "clients" / str(os.getpid())
    client.touch()
    try:
        return _answer(directory, words)
    finally:
        client.unlink(missing_ok=True)


if __name__ == "__main__":
    code = _main()
    sys.stdout.flush()
    os._exit(code)
