"""One suite for every way to a device."""

from __future__ import annotations

import os
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from compact.base.errors import StorageError, UnsafePathError, UsageError
from runtime_bench.transports.base import DeviceUnavailableError
from runtime_bench.transports.registry import open_transport
from tests.runtime_bench.conftest import Device
from tests.runtime_bench.sshd import running_sshd
from tests.runtime_bench.transports.devices import SECONDS, eventually, gone, local_file, sha256

NASTY = ["a b", "it's", '"q"', "$(touch /tmp/never)", "`id`", "$HOME", "\\", "*", "~", "a;b", "", "-n", "ü𝄞", "\t"]
NAMES = ["model.gguf", "a b.gguf", "it's $(id) `x`.gguf", "-rf", "größe 模型.gguf", '"quoted"*.gguf']


# Commands


def test_a_program_gets_its_words_and_stdin_and_its_answer_comes_back(device: Device) -> None:
    with device.open() as transport:
        script = "import sys; sys.stdout.write('\\0'.join(sys.argv[1:])); sys.stderr.write('e'); sys.exit(255)"
        done = transport.run([sys.executable, "-c", script, *NASTY])
        assert done.stdout.decode("utf-8").split("\0") == NASTY
        assert (done.returncode, done.stderr) == (255, b"e")
        data = bytes(range(256)) * 3000
        assert transport.run(["cat"], stdin=data).stdout == data
        assert transport.run(["cat"]).stdout == b""
        assert transport.run(["printf", "two\\nlines\\n\\n"]).stdout == b"two\nlines\n\n"


def test_a_program_that_is_not_there_is_an_answer(device: Device) -> None:
    with device.open() as transport:
        assert transport.run(["no-such-program"]).returncode == 127


@pytest.mark.parametrize("word", ["a\nb", "a\0b"])
def test_words_that_no_line_carries_are_refused(device: Device, word: str) -> None:
    with device.open() as transport, pytest.raises(UsageError):
        transport.run(["echo", word])


def test_a_command_that_takes_too_long_is_ended_with_its_children(device: Device, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with device.open() as transport:
        with pytest.raises(DeviceUnavailableError, match="took longer"):
            transport.run(["sh", "-c", 'sleep 300 & echo $! >"$1"; wait', "sh", str(note)], timeout=1)
        assert eventually(lambda: gone(int(note.read_text("utf-8"))))


def test_the_runs_directory_lives_as_long_as_the_transport(device: Device) -> None:
    with device.open() as transport:
        assert transport.run(["pwd"]).text == transport.work_dir
        assert transport.work_dir.startswith("/")
        assert len(device.runs()) == 1
    assert eventually(lambda: device.runs() == [])


def test_clean_leaves_nothing(device: Device, tmp_path: Path) -> None:
    source, digest = local_file(tmp_path, "m.gguf", b"x" * 100)
    with device.open() as transport:
        transport.place(source, digest)
        transport.clean()
    assert not device.base.exists()
    assert source.exists()


# Files


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_placed_under_its_name_and_pulled_back(device: Device, tmp_path: Path, name: str) -> None:
    data = os.urandom(70_000)
    source, digest = local_file(tmp_path, name, data)
    with device.open() as transport:
        placed = transport.place(source, digest)
        assert placed.rpartition("/")[2] == name
        assert transport.run(["cat", placed]).stdout == data
        back = tmp_path / "back"
        transport.pull(placed, back)
        assert back.read_bytes() == data


def test_a_file_that_is_there_is_not_sent_again(remote: Device, tmp_path: Path) -> None:
    source, digest = local_file(tmp_path, "m.gguf", os.urandom(5000))
    with remote.open() as transport:
        first = transport.place(source, digest)
        before = Path(first).stat()
    with remote.open() as transport:
        assert transport.place(source, digest) == first
    after = Path(first).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_file_that_was_damaged_there_is_sent_again(remote: Device, tmp_path: Path) -> None:
    data = os.urandom(5000)
    source, digest = local_file(tmp_path, "m.gguf", data)
    with remote.open() as transport:
        placed = Path(transport.place(source, digest))
        placed.write_bytes(b"other")
        transport.place(source, digest)
        assert placed.read_bytes() == data


def test_a_copy_that_differs_is_removed(remote: Device, tmp_path: Path) -> None:
    source, _ = local_file(tmp_path, "m.gguf", b"what is sent")
    wrong = sha256(b"what was promised")
    with remote.open() as transport:
        with pytest.raises(DeviceUnavailableError, match="differs"):
            transport.place(source, wrong)
        assert not list((remote.base / "files" / wrong).iterdir())
        assert [path.name for path in Path(transport.work_dir).iterdir()] == [".keeper"]


def test_a_folder_is_placed_whole(device: Device, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    files = {
        "model.onnx": local_file(tmp_path / "one", "model.onnx", b"a"),
        "config.json": local_file(tmp_path / "two", "other name.json", b"b"),
    }
    with device.open() as transport:
        folder = transport.place_folder(files)
        assert transport.run(["cat", f"{folder}/model.onnx", f"{folder}/config.json"]).stdout == b"ab"


def test_a_name_that_leaves_its_folder_is_refused(device: Device, tmp_path: Path) -> None:
    source, digest = local_file(tmp_path, "m", b"a")
    with device.open() as transport, pytest.raises(UnsafePathError):
        transport.place_folder({"../m": (source, digest)})


def test_a_name_with_a_line_break_is_refused(remote: Device, tmp_path: Path) -> None:
    source, digest = local_file(tmp_path, "a\nb", b"a")
    with remote.open() as transport, pytest.raises(UsageError, match="line break"):
        transport.place(source, digest)


def test_a_file_that_is_not_here_is_no_device_failure(device: Device, tmp_path: Path) -> None:
    with device.open() as transport, pytest.raises(StorageError):
        transport.place(tmp_path / "none", "0" * 64)


def test_a_file_that_is_not_there_cannot_be_pulled(device: Device, tmp_path: Path) -> None:
    with device.open() as transport, pytest.raises(DeviceUnavailableError):
        transport.pull("/no/such/file", tmp_path / "back")
    assert not [path.name for path in tmp_path.iterdir() if "back" in path.name]


def test_too_little_space_is_reported_before_anything_is_sent(remote: Device, tmp_path: Path) -> None:
    source, digest = local_file(tmp_path, "m.gguf", b"x")
    os.truncate(source, 1 << 43)
    with remote.open() as transport, pytest.raises(DeviceUnavailableError, match=r"8796093 MB.* MB are free"):
        transport.place(source, digest)
    assert not list((remote.base / "files" / digest).iterdir())


def test_a_disk_that_gets_full_meanwhile_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, digest = local_file(tmp_path, "m.gguf", os.urandom(4 << 20))
    (tmp_path / "sshd").mkdir()
    with running_sshd(tmp_path / "sshd", largest_file=1 << 20) as server:
        monkeypatch.setenv("COMPACT_EDGE_SSH_CONFIG", str(server.client_config))
        with open_transport(server.spec) as transport:
            with pytest.raises(DeviceUnavailableError, match=r"m\.gguf cannot be written .*[Ff]ile too large"):
                transport.place(source, digest)
            assert [path.name for path in Path(transport.work_dir).iterdir()] == [".keeper"]
        assert not list(server.home.glob(f".cache/compact-edge/files/{digest}/*"))


class Counting:
    """A progress that adds up what it receives."""

    def __init__(self) -> None:
        self.tasks: list[str] = []
        self.total = 0
        self.done = 0

    @contextmanager
    def task(self, description: str, total: int | None, unit: str) -> Iterator[Counting]:
        self.tasks.append(description)
        self.total += total or 0
        yield self

    def advance(self, amount: int = 1) -> None:
        self.done += amount

    def note(self, text: str) -> None:
        raise AssertionError(text)


def test_a_copy_is_reported_and_a_second_one_is_not(remote: Device, tmp_path: Path) -> None:
    source, digest = local_file(tmp_path, "m.gguf", os.urandom(3_000_000))
    progress = Counting()
    with open_transport(remote.spec, progress=progress) as transport:
        transport.place(source, digest)
        transport.place(source, digest)
    assert len(progress.tasks) == 1
    assert "m.gguf" in progress.tasks[0]
    assert progress.done == progress.total == 3_000_000


# Servers

SERVER = """
import http.server, os, sys
print("A is", os.environ.get("A"), flush=True)
server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
with open("port", "w") as file:
    file.write(str(server.server_port))
os.rename("port", "port.txt")
server.serve_forever()
"""
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(300)"
)


def port_of(transport: object) -> int:
    path = Path(transport.work_dir) / "port.txt"  # type: ignore[attr-defined]
    assert eventually(path.exists)
    return int(path.read_text("utf-8"))


def script_file(folder: Path, text: str) -> str:
    path = folder / "server.py"
    path.write_text(text, "utf-8")
    return str(path)


def test_a_server_runs_until_it_is_stopped(device: Device, tmp_path: Path) -> None:
    words = [sys.executable, script_file(tmp_path, SERVER)]
    with device.open() as transport:
        program = transport.start(words, log="server.log", limit=120, environment={"A": "b 'c' $(d)"})
        port = port_of(transport)
        with transport.forward(port) as here, urllib.request.urlopen(f"http://127.0.0.1:{here}/") as answer:
            assert answer.status == 200
        assert program.alive()
        assert psutil.Process(program.pid).cmdline() == words
        assert transport.run(["cat", program.log]).text.startswith("A is b 'c' $(d)")
        program.stop()
        assert gone(program.pid)
        assert not program.alive()
        program.stop()


def test_a_server_that_ignores_term_is_killed(device: Device, tmp_path: Path) -> None:
    with device.open() as transport:
        program = transport.start([sys.executable, script_file(tmp_path, STUBBORN)], log="log", limit=120)
        assert eventually(lambda: b"up" in transport.run(["cat", program.log]).stdout)
        program.stop()
        assert gone(program.pid)


def test_the_device_ends_a_server_at_its_time_limit(device: Device) -> None:
    with device.open() as transport:
        program = transport.start(["sleep", "300"], log="log", limit=1)
        assert eventually(lambda: gone(program.pid))
        assert eventually(lambda: not program.alive())
        program.stop()


def test_a_log_of_an_earlier_server_is_not_read_as_that_of_the_next(device: Device) -> None:
    with device.open() as transport:
        first = transport.start(["sh", "-c", "echo listening; exec sleep 300"], log="log", limit=60)
        assert eventually(lambda: transport.run(["cat", first.log]).text == "listening")
        first.stop()
        second = transport.start(["sleep", "300"], log="log", limit=60)
        assert transport.run(["cat", second.log]).text == ""
        second.stop()


def test_a_server_that_ends_by_itself_is_seen(device: Device) -> None:
    with device.open() as transport:
        program = transport.start(["sh", "-c", "echo no model >&2; exit 3"], log="log", limit=60)
        assert eventually(lambda: not program.alive())
        assert transport.run(["cat", program.log]).text == "no model"
        program.stop()


def test_a_server_that_is_not_there_cannot_be_started(device: Device, tmp_path: Path) -> None:
    plain, _ = local_file(tmp_path, "plain", b"no program")
    with device.open() as transport:
        for words in (["no-such-program"], [str(plain)], [str(tmp_path)]):
            with pytest.raises(DeviceUnavailableError) as caught:
                transport.start(words, log="log", limit=60)
            assert words[0] in caught.value.message
        with pytest.raises(UnsafePathError):
            transport.start(["true"], log="../log", limit=60)
        with pytest.raises(UsageError):
            transport.start(["true"], log="log", limit=60, environment={"A=B; x": "1"})


def test_a_conversation_ends_with_its_stdin(device: Device) -> None:
    with device.open() as transport:
        child = transport.converse(["sh", "-c", 'read -r a; echo "$a $B"; cat; pwd >&2'], environment={"B": "x y"})
        out, err = child.communicate(b"first\nsecond\n", timeout=SECONDS)
        assert out == b"first x y\nsecond\n"
        assert err.decode("utf-8").strip() == transport.work_dir


# Names


NO_DEVICES = [
    *("", "locale", "local:", "ssh", "ssh:", "http://host", "adb:", "adb:-s", "adb:a b", "adb:a;b", "adb:x\n"),
    *("ssh:-oProxyCommand=x", "ssh:a@-x", "ssh:-l@host", "ssh:@host", "ssh:a@b@c:d", "ssh:$(id)@h", "ssh:h;id"),
    *("ssh:host:", "ssh:host:0", "ssh:host:65536", "ssh:host:22x", "ssh:host:-1", "ssh:host:٣", "ssh:host\n"),
    *("ssh:::1", "ssh:[::1", "ssh:[::1]22", "ssh:[x]:22", "ssh:[-x:]:22", "ssh:hôst", "ssh:ho st"),
]


@pytest.mark.parametrize("spec", NO_DEVICES)
def test_words_that_name_no_device_are_refused_with_the_grammar(spec: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_transport(spec)
    assert "\n" not in caught.value.message
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("write ")


@pytest.mark.parametrize(
    ("spec", "user", "host", "port"),
    [
        ("pi", None, "pi", None),
        ("me@pi.local:2222", "me", "pi.local", 2222),
        ("me@[fe80::1%eth0]:22", "me", "fe80::1%eth0", 22),
        ("[::1]", None, "::1", None),
        ("10.0.0.7:65535", None, "10.0.0.7", 65535),
    ],
)
def test_an_address_is_taken_apart(spec: str, user: str | None, host: str, port: int | None) -> None:
    from runtime_bench.transports.ssh import parse_address

    assert parse_address(spec) == (user, host, port)
    assert open_transport(f"ssh:{spec}").spec == f"ssh:{spec}"
