"""What ssh says about hosts that cannot be used, and that its own configuration counts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from runtime_bench.transports.base import DeviceUnavailableError
from runtime_bench.transports.registry import open_transport
from tests.runtime_bench.sshd import Server


def failure(spec: str) -> DeviceUnavailableError:
    with pytest.raises(DeviceUnavailableError) as caught, open_transport(spec):
        pass
    assert caught.value.message.startswith(spec)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value


def other_config(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str) -> None:
    text = server.client_config.read_text("utf-8")
    assert before in text
    path = folder / "ssh_config"
    path.write_text(text.replace(before, after), "utf-8")
    monkeypatch.setenv("COMPACT_EDGE_SSH_CONFIG", str(path))


def test_a_key_that_is_refused(sshd: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other_config(sshd, tmp_path, monkeypatch, "/user\n", "/host\n")
    assert "refuses this user" in failure(sshd.spec).message


def test_a_host_key_that_is_not_known(sshd: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other_config(sshd, tmp_path, monkeypatch, "known_hosts\n", "none\n")
    assert "host key" in failure(sshd.spec).message


def test_a_port_where_nothing_listens(sshd: Server) -> None:
    assert "ssh server" in failure(f"ssh:{sshd.user}@127.0.0.1:1").message


def test_a_name_that_is_no_host(sshd: Server) -> None:
    assert "no such host" in failure("ssh:no-such-host.invalid").message


def test_an_alias_of_the_users_configuration(sshd: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alias = f"Host board\n  HostName 127.0.0.1\n  Port {sshd.port}\n  User {sshd.user}\n"
    greedy = "Host *\n  RemoteCommand echo never\n  RequestTTY force\n  ForwardAgent yes\nHost *\n"
    other_config(sshd, tmp_path, monkeypatch, "IdentityFile", f"{alias}{greedy}IdentityFile")
    with open_transport("ssh:board") as transport:
        assert transport.run(["echo", "here"]).text == "here"


def test_a_shell_that_greets_is_understood(sshd: Server) -> None:
    rc = sshd.home / ".ssh"
    rc.mkdir(exist_ok=True)
    (rc / "rc").write_text("echo Welcome; echo compact-edge\n", "utf-8")
    try:
        with open_transport(sshd.spec) as transport:
            assert transport.run(["printf", "x"]).stdout == b"x"
    finally:
        shutil.rmtree(rc)


def test_no_socket_stays_behind(sshd: Server) -> None:
    before = set(Path("/tmp").glob("ce-*"))
    with open_transport(sshd.spec):
        assert len(set(Path("/tmp").glob("ce-*")) - before) == 1
    assert set(Path("/tmp").glob("ce-*")) <= before


def test_no_ssh_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceUnavailableError, match="ssh cannot be started"), open_transport("ssh:host"):
        pass
