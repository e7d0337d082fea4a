"""The whole bench over adb: a stand-in for the client, and behind it the pushed aarch64 engine in an emulator."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from compact_edge.cli import main as cli
from runtime_bench.toolchain.engine_folder import EngineFolder
from tests.runtime_bench import adb_standin
from tests.runtime_bench.adb_standin import Standin
from tests.small_builds import command, run_child

BINFMT = Path("/proc/sys/fs/binfmt_misc")
NAME = "compact-edge-test-aarch64"
# ELF, 64 bits, little-endian, executable, EM_AARCH64 (0xb7): Documentation/admin-guide/binfmt-misc.rst of Linux.
MAGIC = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"


@pytest.fixture
def runs_aarch64(emulator: list[str], aarch64_engine: EngineFolder) -> Iterator[None]:
    """The kernel starts aarch64 programs in qemu for as long as the test runs."""

    def runs() -> bool:
        with contextlib.suppress(OSError):
            return (
                subprocess.run([aarch64_engine.server, "--version"], capture_output=True, check=False).returncode == 0
            )
        return False

    if runs():
        yield
        return
    mounted = False
    try:
        if not (BINFMT / "register").exists():
            mounted = subprocess.run(["mount", "-t", "binfmt_misc", "none", str(BINFMT)], check=False).returncode == 0
        (BINFMT / "register").write_text(f":{NAME}:M::{MAGIC}:{MASK}:{emulator[0]}:", "ascii")
    except OSError as error:
        pytest.skip(f"the kernel does not take a handler for aarch64 programs here ({error.strerror})")
    try:
        assert runs()
        yield
    finally:
        (BINFMT / NAME).write_text("-1", "ascii")
        if mounted:
            subprocess.run(["umount", str(BINFMT)], check=False)


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Standin:
    """A device that calls itself an emulated aarch64 phone."""
    standin = adb_standin.install(tmp_path / "adb", monkeypatch)
    standin.set(properties={"ro.kernel.qemu": "1", "ro.product.model": "Emulated", "ro.build.version.sdk": "34"})
    uname = standin.directory / "device-bin" / "uname"
    uname.write_text('#!/bin/sh\ncase $1 in -m) echo aarch64 ;; *) exec /bin/uname "$@" ;; esac\n', "utf-8")
    uname.chmod(0o755)
    return standin


@pytest.mark.usefixtures("runs_aarch64")
def test_the_whole_bench_on_an_emulated_phone(
    aarch64_engine: EngineFolder, phone: Standin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "tiny"
    words = ("build", "tiny", "--target", "gguf", "--quant", "F32", "--with-baseline", "--threads", "1")
    done = run_child(command(*words, "--out", str(out)), os.environ)
    assert done.returncode == 0, done.stderr
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"name": "short", "text": "The children went to the sea"}\n', "utf-8")
    monkeypatch.chdir(tmp_path)
    line = ["bench", str(out), "--device", phone.spec, "--engine-dir", str(aarch64_engine.path), "--threads", "1"]
    line += ["--repetitions", "1", "--depths", "16", "--tokens", "8", "--context", "128", "--prompts", str(prompts)]
    assert cli.run([*line, "--out", "run"]) == 0, sys.stderr
    document = json.loads((tmp_path / "run" / "report.json").read_text("utf-8"))
    assert (document["status"], document["emulated"]) == ("complete", True)
    assert document["title"].startswith("EMULATED")
    assert document["device"]["machine"] == "aarch64"
    assert "NEON" in document["engine"]["cpu_features"]
    # An emulator's speed means nothing, and the report claims none.
    speeds = [m for m in document["metrics"] if m["group"] in ("ttft", "prefill", "decode", "text", "load", "itl")]
    assert speeds
    assert {metric["verdict"] for metric in speeds} <= {"not judged", "not compared"}
    assert any(call[2:3] == ["forward"] for call in phone.calls())
    # Nothing of it runs on, and the run's own directory is gone.
    assert not list((phone.base / "runs").iterdir())
