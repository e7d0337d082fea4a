"""Devices that tests can reach: this machine, a real sshd on its loopback, and a stand-in for adb."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from compact.base.cache import Cache, default_root
from runtime_bench.device.facts import read_facts
from runtime_bench.toolchain.engine_folder import find_engine
from runtime_bench.transports.base import Transport
from runtime_bench.transports.registry import open_transport
from tests.runtime_bench import adb_standin
from tests.runtime_bench.adb_standin import Standin
from tests.runtime_bench.sshd import Server, running_sshd

if TYPE_CHECKING:
    from tests.small_builds import Workshop


@pytest.fixture(scope="session")
def _sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def sshd(_sshd: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A running server that the client's configuration of this test knows."""
    monkeypatch.setenv("COMPACT_EDGE_SSH_CONFIG", str(_sshd.client_config))
    return _sshd


@pytest.fixture
def adb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Standin:
    """The stand-in for adb, on PATH."""
    return adb_standin.install(tmp_path / "adb", monkeypatch)


@dataclass(frozen=True)
class Device:
    """One way to a device.

    Attributes:
        kind: `local`, `ssh` or `adb`.
        spec: its address.
        base: where the bench's files lie, as this machine sees them.
        cut: lose the link; None where there is none.
    """

    kind: str
    spec: str
    base: Path
    cut: Callable[[], int] | None

    def open(self) -> Transport:
        return open_transport(self.spec)

    def runs(self) -> list[str]:
        """The directories of runs that are there."""
        folder = self.base / "runs"
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _device(kind: str, request: pytest.FixtureRequest) -> Device:
    if kind == "local":
        cache = request.getfixturevalue("tmp_path") / "cache"
        request.getfixturevalue("monkeypatch").setenv("COMPACT_EDGE_CACHE", str(cache))
        return Device(kind, "local", cache / "bench", None)
    if kind == "ssh":
        server: Server = request.getfixturevalue("sshd")
        return Device(kind, server.spec, server.home / ".cache/compact-edge", server.cut)
    standin: Standin = request.getfixturevalue("adb")
    return Device(kind, standin.spec, standin.base, standin.cut)


@pytest.fixture(params=["local", "ssh", "adb"])
def device(request: pytest.FixtureRequest) -> Device:
    """Every way to a device in turn."""
    return _device(request.param, request)


@pytest.fixture(params=["ssh", "adb"])
def remote(request: pytest.FixtureRequest) -> Device:
    """Every way to a device that is not this machine."""
    return _device(request.param, request)


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A small model."""
    from tests.small_builds import Workshop  # imports torch, which few tests of this folder need

    return Workshop(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="session")
def both(shop: Workshop) -> Path:
    """Its build in both formats with baselines, once for all modules. Tests read it and change copies."""
    return shop.build_both()


@pytest.fixture(scope="session")
def server_folder() -> Path:
    """A folder with llama-server for this machine, as `compact-edge engine build` made it in the user's cache."""
    with open_transport("local") as transport:
        facts = read_facts(transport)
    found = find_engine(Cache(default_root(), [], []), facts.machine or "unknown", facts.isa_features, system=facts.os)
    if found is None:
        pytest.skip("no llama-server for this machine (run: compact-edge engine build)")
    return found.path
