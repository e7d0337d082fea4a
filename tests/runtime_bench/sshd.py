"""A real sshd on this machine's loopback, with keys and configuration of its own."""

from __future__ import annotations

import contextlib
import getpass
import os
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

_PLACES = ("/usr/sbin/sshd", "/usr/local/sbin/sshd", "/usr/libexec/sshd")


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        port: on 127.0.0.1.
        user: who may log in, by key.
        home: the home directory of its sessions.
        client_config: file for `ssh -F`.
        process: the listening process; its children are the sessions.
        log: what it wrote.
    """

    port: int
    user: str
    home: Path
    client_config: Path
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def spec(self) -> str:
        return f"ssh:{self.user}@127.0.0.1:{self.port}"

    def cut(self) -> int:
        """Kill every session's sshd at once, as a lost link does; what runs in the sessions is left. How many died."""
        sessions = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name().startswith("sshd"):
                    process.send_signal(signal.SIGKILL)
                    sessions.append(process.pid)
        return len(sessions)


@contextmanager
def running_sshd(folder: Path, *, largest_file: int | None = None) -> Iterator[Server]:
    """Start a server whose files lie in `folder`; skips the test where there is no sshd or it does not start.

    No file in its sessions can get larger than `largest_file` bytes: writing more fails, as on a full disk.
    """
    program = next((place for place in _PLACES if Path(place).exists()), None)
    if program is None or shutil.which("ssh") is None or shutil.which("ssh-keygen") is None:
        pytest.skip("needs OpenSSH's sshd, ssh and ssh-keygen (Debian: openssh-server)")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    home = folder / "home"
    home.mkdir()
    port = _free_port()
    shutil.copyfile(folder / "user.pub", folder / "authorized_keys")
    key = (folder / "host.pub").read_text("utf-8")
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {key}[::1]:{port} {key}", "utf-8")
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized_keys\n"
        f"PidFile {folder}/sshd.pid\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
        f"KbdInteractiveAuthentication no\nPermitRootLogin yes\nPrintMotd no\nMaxStartups 100\n"
        f"SetEnv HOME={home}\nSubsystem sftp internal-sftp\nLogLevel VERBOSE\n",
        "utf-8",
    )
    config = folder / "ssh_config"
    config.write_text(
        f"IdentityFile {folder}/user\nIdentitiesOnly yes\nUserKnownHostsFile {folder}/known_hosts\n"
        "GlobalKnownHostsFile /dev/null\nStrictHostKeyChecking yes\n",
        "utf-8",
    )
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):
            Path("/run/sshd").mkdir(parents=True, exist_ok=True)
    log = folder / "sshd.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [program, "-D", "-e", "-f", str(folder / "sshd_config")],
            stderr=file,
            preexec_fn=None if largest_file is None else lambda: _limit_files(largest_file),
        )
    try:
        server = Server(port, getpass.getuser(), home, config, process, log)
        _wait_until_it_answers(server)
        yield server
        server.cut()
    finally:
        process.kill()
        process.wait()


def _wait_until_it_answers(server: Server) -> None:
    target = f"{server.user}@127.0.0.1"
    command = ["ssh", "-F", str(server.client_config), "-p", str(server.port), "-o", "BatchMode=yes", target, "true"]
    reason = ""
    for _ in range(50):
        if server.process.poll() is not None:
            break
        answer = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False)
        if answer.returncode == 0:
            return
        reason = answer.stderr.decode("utf-8", "replace")
        time.sleep(0.1)
    pytest.skip(f"sshd does not start here: {reason} {server.log.read_text('utf-8', 'replace')[-500:]}")


def _limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    # Ignored, so that writing fails with an error and does not kill.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
