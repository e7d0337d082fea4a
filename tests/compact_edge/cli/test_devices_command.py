"""`compact-edge devices`: this machine, what adb lists, and what is named."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from compact_edge.cli.main import run
from tests.runtime_bench import adb_standin
from tests.runtime_bench.adb_standin import Standin
from tests.runtime_bench.sshd import running_sshd


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPACT_EDGE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def adb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Standin:
    return adb_standin.install(tmp_path / "adb", monkeypatch)


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    code = run(["devices", "--json", *words])
    out, err = capsys.readouterr()
    result: dict[str, Any] = json.loads(out)
    return {"code": code, "err": err, "notes": result["notes"], **{row["device"]: row for row in result["devices"]}}


def test_this_machine_and_every_android_device_are_listed(adb: Standin, capsys: pytest.CaptureFixture[str]) -> None:
    adb.set(devices={adb.serial: "device", "X2": "unauthorized"})
    result = listed(capsys)
    assert result["code"] == 0
    assert result["local"]["facts"]["logical_cores"] == os.cpu_count()
    assert (result[adb.spec]["state"], result[adb.spec]["model"]) == ("ready", "Stand_in")
    assert result["adb:X2"]["state"] == "unauthorized"
    assert not any("shell" in call for call in adb.calls()), "a device that is not named is not opened"


def test_the_table_says_the_same(adb: Standin, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["devices", adb.spec]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["DEVICE", "STATE"], ["local", "ready"], [adb.spec, "ready"]]
    assert "cores" in lines[1]
    assert "Stand_in" in lines[2]


def test_a_named_device_that_fails_is_reported_and_ends_with_69(
    adb: Standin, capsys: pytest.CaptureFixture[str]
) -> None:
    adb.set(devices={adb.serial: "unauthorized"})
    result = listed(capsys, adb.spec)
    assert result["code"] == 69
    assert "has not allowed this computer" in result[adb.spec]["reason"]
    assert "hint: unlock its screen" in result["err"]
    assert result["local"]["facts"]


def test_words_that_name_no_device_end_with_2_before_anything(adb: Standin, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["devices", adb.spec, "ssh:-oProxyCommand=x"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "hint: write ssh:host" in err
    assert adb.calls() == []


def test_no_adb_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "bin"
    kept.mkdir()
    for place in os.environ["PATH"].split(os.pathsep):
        for program in Path(place).iterdir() if Path(place).is_dir() else ():
            if program.name != "adb" and not (kept / program.name).exists():
                (kept / program.name).symlink_to(program)
    monkeypatch.setenv("PATH", str(kept))
    result = listed(capsys)
    assert result["code"] == 0
    assert "install adb" in result["notes"][0]


def test_a_host_over_ssh_is_described(
    adb: Standin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with running_sshd(tmp_path) as server:
        monkeypatch.setenv("COMPACT_EDGE_SSH_CONFIG", str(server.client_config))
        result = listed(capsys, server.spec, f"ssh:{server.user}@127.0.0.1:1")
        assert result["code"] == 69
        here, there = result["local"]["facts"], result[server.spec]["facts"]
        for name in ("machine", "kernel", "cpu_model", "isa_features", "memory_bytes", "page_size"):
            assert there[name] == here[name]
