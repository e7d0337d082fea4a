"""What adb says about devices that cannot be used; the client is the real one where a test says so."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime_bench.transports.adb import list_devices, parse_devices
from runtime_bench.transports.base import DeviceUnavailableError
from runtime_bench.transports.registry import open_transport
from tests.runtime_bench.adb_standin import Standin


def failure(spec: str) -> DeviceUnavailableError:
    with pytest.raises(DeviceUnavailableError) as caught, open_transport(spec):
        pass
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    ("state", "word", "step"),
    [
        ("unauthorized", "allowed", "unlock its screen"),
        ("offline", "offline", "replug"),
        ("no permissions (missing udev rules?)", "may not be opened", "udev rule"),
        ("recovery", "Android", "start Android"),
    ],
)
def test_a_state_that_is_no_device_is_reported_with_its_next_step(
    adb: Standin, state: str, word: str, step: str
) -> None:
    adb.set(devices={adb.serial: state})
    error = failure(adb.spec)
    assert word in error.message
    assert step in str(error.hint)


def test_the_only_device_needs_no_serial(adb: Standin) -> None:
    with open_transport("adb") as transport:
        assert transport.spec == adb.spec
    adb.set(devices={})
    assert "not connected" in failure("adb").message
    adb.set(devices={"A1": "device", "B2": "offline"})
    assert "A1, B2" in failure("adb").message


def test_an_emulator_is_known(adb: Standin) -> None:
    with open_transport(adb.spec) as transport:
        assert not transport.emulated
    adb.set(properties={"ro.boot.qemu": "1"})
    with open_transport(adb.spec) as transport:
        assert transport.emulated


def test_a_copy_that_the_device_refuses_is_reported(adb: Standin, tmp_path: Path) -> None:
    source = tmp_path / "m"
    source.write_bytes(b"x")
    adb.set(push_error="remote write failed: No space left on device")
    digest = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    with open_transport(adb.spec) as transport, pytest.raises(DeviceUnavailableError, match="cannot be copied"):
        transport.place(source, digest)
    assert not list(adb.base.glob("files/*/*"))


def test_the_shell_gets_one_word(adb: Standin) -> None:
    with open_transport(adb.spec) as transport:
        transport.run(["echo", "a b", "$(id)"])
    shells = [call for call in adb.calls() if "shell" in call]
    assert shells
    assert all(call[:3] == ["-s", adb.serial, "shell"] and len(call) == 4 for call in shells)


def test_the_list_of_devices_is_read() -> None:
    text = (
        "* daemon not running; starting now at tcp:5037\n* daemon started successfully\nList of devices attached\n"
        "0123456789ABCDEF       device usb:1-1 product:sailfish model:Pixel device:sailfish transport_id:3\n"
        "192.168.1.9:5555       offline transport_id:4\n"
        "HT1234                 no permissions (user in plugdev group; are your udev rules wrong?); see [url] usb:1\n"
        "X                      unauthorized usb:1-2\nnonsense\n\n"
    )
    assert [(device.serial, device.state, device.model) for device in parse_devices(text)] == [
        ("0123456789ABCDEF", "device", "Pixel"),
        ("192.168.1.9:5555", "offline", None),
        ("HT1234", "no permissions", None),
        ("X", "unauthorized", None),
    ]
    assert parse_devices("") == parse_devices("\x00 what\n") == ()


def test_no_adb_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    error = failure("adb:X")
    assert "adb cannot be started" in error.message
    assert "install adb" in str(error.hint)


@pytest.fixture
def real_adb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The real client with a server of its own and no device."""
    if shutil.which("adb") is None:
        pytest.skip("needs adb (Debian: apt install adb)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(probe.getsockname()[1]))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ADB_MDNS", "0")
    environment = dict(os.environ)
    subprocess.run(["adb", "start-server"], capture_output=True, check=False)
    yield
    subprocess.run(["adb", "kill-server"], capture_output=True, check=False, env=environment)


def test_the_real_client_without_a_device(real_adb: None) -> None:
    if list_devices():
        pytest.skip("a device is connected")
    assert "not connected" in failure("adb:NOSUCHSERIAL").message
    assert "not connected" in failure("adb").message
