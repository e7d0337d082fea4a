"""Whatever ends - the caller, the link, the time - nothing stays behind on a device, and nothing is done twice."""

from __future__ import annotations

import contextlib
import os
import platform
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from runtime_bench.transports.base import LinkLostError
from runtime_bench.transports.registry import open_transport
from tests.runtime_bench.adb_standin import Standin
from tests.runtime_bench.conftest import Device
from tests.runtime_bench.sshd import Server
from tests.runtime_bench.transports.devices import SECONDS, eventually, gone, local_file, sha256

# Nothing stays behind


def test_what_still_runs_ends_with_the_transport(device: Device) -> None:
    with device.open() as transport:
        program = transport.start(["sleep", "306"], log="log", limit=600)
        child = transport.converse(["sh", "-c", "echo up; exec cat"])
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
    assert gone(program.pid)
    assert child.poll() is not None
    assert eventually(lambda: device.runs() == [])


COPYING = """
import sys
from pathlib import Path
from compact_edge.cli.main import _end_cleanly_on_signals
from runtime_bench.transports.registry import open_transport
_end_cleanly_on_signals()
print("up", flush=True)
with open_transport({spec!r}) as transport:
    transport.place(Path({path!r}), {digest!r})
    transport.start(["sleep", {server!r}], log="log", limit=600)
    transport.run(["sleep", {command!r}])
"""


@pytest.mark.parametrize("pause", [0.0, 0.1, 0.25, 0.4, 0.6, 0.9])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.slow
def test_a_parent_that_ends_at_any_moment_leaves_nothing(
    remote: Device, tmp_path: Path, naps: tuple[str, str], number: signal.Signals, pause: float
) -> None:
    source, digest = local_file(tmp_path, "m.gguf", os.urandom(20 << 20))
    program = COPYING.format(spec=remote.spec, path=str(source), digest=digest, server=naps[0], command=naps[1])
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(pause)
        child.send_signal(number)
        child.wait(SECONDS)
        assert eventually(lambda: not sleepers(naps[0]) and not sleepers(naps[1]))
        assert eventually(lambda: remote.runs() == [])
        copies = list(remote.base.glob(f"files/{digest}/*"))
        assert all(sha256(path.read_bytes()) == digest for path in copies)
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


PARENT = """
import sys
from compact_edge.cli.main import _end_cleanly_on_signals
from runtime_bench.transports.registry import open_transport
_end_cleanly_on_signals()
with open_transport({spec!r}) as transport:
    program = transport.start(["sleep", {server!r}], log="log", limit=600)
    print(program.pid, flush=True)
    try:
        transport.run(["sleep", {command!r}], timeout=500)
    finally:
        program.stop()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_parent_that_ends_leaves_no_process_and_no_directory(
    device: Device, naps: tuple[str, str], number: signal.Signals
) -> None:
    program = PARENT.format(spec=device.spec, server=naps[0], command=naps[1])
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert child.stdout is not None
        pid = int(child.stdout.readline())
        assert eventually(lambda: bool(sleepers(naps[1])))
        child.send_signal(number)
        child.wait(SECONDS)
        assert eventually(lambda: gone(pid) and not sleepers(naps[1]))
        assert eventually(lambda: device.runs() == [])
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


@pytest.fixture
def naps() -> tuple[str, str]:
    """Two times for `sleep` that no other process on this machine sleeps for."""
    number = random.SystemRandom().randrange(10**6)
    return f"300.{number:06}", f"301.{number:06}"


def sleepers(seconds: str) -> list[int]:
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if process.info["cmdline"] == ["sleep", seconds] and not gone(process.pid)
    ]


# A lost link


def test_a_link_that_is_lost_ends_the_server_there(remote: Device) -> None:
    assert remote.cut is not None
    with remote.open() as transport:
        program = transport.start(["sleep", "303"], log="log", limit=600)
        assert remote.cut() > 0
        assert eventually(lambda: gone(program.pid))
        assert eventually(lambda: not program.alive())
        program.stop()
    assert eventually(lambda: remote.runs() == [])


def test_a_link_lost_while_a_server_starts_leaves_no_process(remote: Device, naps: tuple[str, str]) -> None:
    assert remote.cut is not None
    for pause in (0.0, 0.03, 0.1):
        with remote.open() as transport, cutting(remote.cut, pause + 0.01), contextlib.suppress(LinkLostError):
            transport.start(["sleep", naps[0]], log="log", limit=600)
            time.sleep(pause)
        assert eventually(lambda: not sleepers(naps[0]) and remote.runs() == [])


def test_a_command_after_a_lost_link_is_tried_again(remote: Device) -> None:
    assert remote.cut is not None
    with remote.open() as transport:
        assert remote.cut() > 0
        assert transport.run(["echo", "back"]).text == "back"
        assert transport.run(["pwd"]).text == transport.work_dir
    assert eventually(lambda: remote.runs() == [])


@contextmanager
def cutting(cut: Callable[[], int], pause: float) -> Iterator[None]:
    """Lose the link again and again."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(pause):
            cut()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_link_that_never_holds_is_reported(remote: Device, naps: tuple[str, str]) -> None:
    assert remote.cut is not None
    with remote.open() as transport, cutting(remote.cut, 0.05), pytest.raises(LinkLostError) as caught:
        transport.run(["sleep", naps[0]])
    assert caught.value.message.startswith(remote.spec)
    assert caught.value.hint
    assert eventually(lambda: not sleepers(naps[0]) and remote.runs() == [])


def test_a_link_lost_while_a_file_is_copied_leaves_no_half_file(sshd: Server, tmp_path: Path) -> None:
    source, digest = local_file(tmp_path, "m.gguf", os.urandom(60 << 20))
    with open_transport(sshd.spec) as transport, cutting(sshd.cut, 0.15), pytest.raises(LinkLostError):
        transport.place(source, digest)
    base = sshd.home / ".cache/compact-edge"
    assert eventually(lambda: not list((base / "runs").iterdir()))
    assert not list(base.glob(f"files/{digest}/*"))


@pytest.mark.parametrize("losses", [1, 2, 3])
def test_a_copy_is_tried_three_times(adb: Standin, tmp_path: Path, losses: int) -> None:
    data = os.urandom(5000)
    source, digest = local_file(tmp_path, "m.gguf", data)
    with open_transport(adb.spec) as transport:
        adb.set(fail_pushes=losses)
        if losses < 3:
            assert Path(transport.place(source, digest)).read_bytes() == data
        else:
            with pytest.raises(LinkLostError):
                transport.place(source, digest)
            assert not list(adb.base.glob(f"files/{digest}/*"))
    assert eventually(lambda: not list((adb.base / "runs").iterdir()))


def test_a_program_is_never_started_twice(adb: Standin, tmp_path: Path) -> None:
    with open_transport(adb.spec) as transport:
        before = len(adb.calls())
        adb.set(offline=True)
        with pytest.raises(LinkLostError, match="offline"):
            transport.start(["sleep", "305"], log="log", limit=60)
        assert len(adb.calls()) == before + 1
        adb.set(offline=False)


def test_what_a_dead_keeper_left_is_removed_by_the_next_run(remote: Device) -> None:
    stale = remote.base / "runs" / "run-stale"
    stale.mkdir(parents=True, exist_ok=True)
    done = subprocess.Popen(["true"])
    done.wait()
    (stale / ".keeper").write_text(f"{done.pid} {platform.node()}\n", "utf-8")
    with remote.open():
        assert "run-stale" not in remote.runs()
