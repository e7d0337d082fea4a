"""Engines are built from the right sources with the right flags, whole or not at all, and run only as built."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from compact.base.cache import Cache
from compact.base.errors import DamagedFileError, DiskFullError, ToolUnavailableError, UsageError
from compact_edge.cli import main as cli
from runtime_bench.toolchain.compile_process import CompileFailedError
from runtime_bench.toolchain.engine_build import build_engine
from runtime_bench.toolchain.engine_folder import find_engine, list_engines
from runtime_bench.toolchain.engine_sources import unpack
from tests.engine_standins import Recorder, StandIns, elf, source_archive
from tests.small_builds import ROOT, command, leftovers, tree

VERSION = version("llama-cpp-python")
V82 = "armv8.2-a+dotprod+fp16"


@pytest.fixture
def standins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIns:
    made = StandIns(tmp_path, VERSION, os.environ["PATH"])
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    # Neither of the two architectures is this machine's, so both are cross compiled wherever the test runs.
    monkeypatch.setattr("runtime_bench.toolchain.engine_flags.platform.machine", lambda: "riscv64")
    return made


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "a cache", [], [])


def definitions(words: list[str]) -> dict[str, str]:
    pairs = (word.removeprefix("-D").partition("=") for word in words if word.startswith("-D"))
    return {name: value for name, _, value in pairs}


def test_the_second_variant_takes_the_sources_of_the_first(standins: StandIns, cache: Cache) -> None:
    progress = Recorder()
    first = build_engine("arm64", V82, cache=cache, progress=progress)
    assert progress.tasks[-1] == {
        "description": f"compiling llama.cpp for aarch64 ({V82})",
        "total": 3,
        "unit": "files",
        "done": 3,
    }
    assert (first.architecture, first.variant, first.system, first.origin) == ("aarch64", V82, "linux", "built")
    assert first.source_version == VERSION
    assert first.version == "1.2.3-dev"
    assert first.compiler == "GNU 12.2.0"
    assert first.bench is not None
    assert first.server.stat().st_mode & 0o111
    assert {file.name for file in first.files} == {"llama-server", "llama-bench"}
    assert sorted(path.name for path in first.path.iterdir()) == [
        *("engine.json", "entry.json", "llama-bench", "llama-server")
    ]
    json.dumps(first.as_dict())
    assert any("downloading" in note for note in progress.notes)

    second = Recorder()
    build_engine("aarch64", "armv8-a", cache=cache, progress=second)
    assert not any("downloading" in note for note in second.notes)
    compiled = len(standins.calls)
    assert build_engine("aarch64", V82, cache=cache).path == first.path
    assert len(standins.calls) == compiled
    build_engine("aarch64", V82, cache=cache, force=True)
    assert len(standins.calls) == compiled + 2
    assert leftovers(cache.root) == []


def test_every_instruction_flag_is_given(standins: StandIns, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXXFLAGS", "-march=native")
    monkeypatch.setenv("CMAKE_GENERATOR", "Xcode")
    build_engine("aarch64", V82, cache=cache)
    configure, compile_ = standins.calls
    flags = definitions(configure["words"])
    assert flags["GGML_CPU_ARM_ARCH"] == V82
    assert flags["GGML_NATIVE"] == "OFF"
    assert flags["CMAKE_SYSTEM_NAME"] == "Linux"
    assert flags["CMAKE_SYSTEM_PROCESSOR"] == "aarch64"
    assert flags["CMAKE_CXX_COMPILER"] == str(standins.bin / "aarch64-linux-gnu-g++")
    assert "-static" in flags["CMAKE_EXE_LINKER_FLAGS"]
    assert configure["words"][:2] == ["-G", "Ninja"]
    assert compile_["words"][-2:] == ["llama-server", "llama-bench"]
    for call in (configure, compile_):
        assert "CXXFLAGS" not in call["environment"], "a user's -march would break the promise of the variant"
        assert "CMAKE_GENERATOR" not in call["environment"]

    monkeypatch.setenv("STANDIN", standins.behaviour(program=elf("x86_64")))
    for variant, state in (("x86-64", "OFF"), ("x86-64-v3", "ON")):
        build_engine("x86_64", variant, cache=cache)
        flags = definitions(standins.calls[-2]["words"])
        for name in ("SSE42", "AVX", "AVX2", "FMA", "F16C", "BMI2"):
            assert flags[f"GGML_{name}"] == state
        assert flags["GGML_AVX512"] == "OFF"
        assert flags["GGML_NATIVE"] == "OFF"


def test_android_takes_its_own_toolchain_and_libc(
    standins: StandIns, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ndk = tmp_path / "an ndk with spaces"
    with pytest.raises(ToolUnavailableError, match="not an Android NDK"):
        build_engine("aarch64", V82, cache=cache, ndk=ndk)
    (ndk / "build" / "cmake").mkdir(parents=True)
    (ndk / "build" / "cmake" / "android.toolchain.cmake").write_text("")
    (ndk / "source.properties").write_text("Pkg.Desc = Android NDK\nPkg.Revision = 27.2.1\n")
    monkeypatch.setenv("STANDIN", standins.behaviour(program=elf("aarch64", interpreter=b"/system/bin/linker64\0")))
    engine = build_engine("aarch64", V82, cache=cache, ndk=ndk)
    flags = definitions(standins.calls[0]["words"])
    assert flags["CMAKE_TOOLCHAIN_FILE"] == str(ndk / "build" / "cmake" / "android.toolchain.cmake")
    assert flags["ANDROID_ABI"] == "arm64-v8a"
    assert flags["ANDROID_PLATFORM"] == "android-28"
    assert flags["ANDROID_STL"] == "c++_static"
    assert "-static" not in flags["CMAKE_EXE_LINKER_FLAGS"]
    assert "CMAKE_CXX_COMPILER" not in flags
    assert engine.system == "android"
    assert find_engine(cache, "aarch64", {"neon", "dotprod", "fp16"}) is None, "Linux has not Android's loader"
    found = find_engine(cache, "aarch64", {"neon", "dotprod", "fp16"}, system="android")
    assert found is not None
    assert found.path == engine.path


def test_a_failed_compile_says_what_the_compiler_said(
    standins: StandIns, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["[1/9] Building x", "FAILED: x.o", "x.cpp:12:3: error: no such thing \x1b[31m", *["ninja: noise"] * 300]
    monkeypatch.setenv("STANDIN", standins.behaviour(lines=lines, status=1))
    with pytest.raises(CompileFailedError, match=r"x\.cpp:12:3: error: no such thing") as caught:
        build_engine("aarch64", V82, cache=cache)
    assert caught.value.exit_code == 69
    assert caught.value.hint
    monkeypatch.setenv(
        "STANDIN", standins.behaviour(lines=["fatal error: writing x.o: No space left on device"], status=1)
    )
    with pytest.raises(DiskFullError):
        build_engine("aarch64", V82, cache=cache)
    monkeypatch.setenv("STANDIN", standins.behaviour(lines=["/usr/bin/ld: cannot find -lstdc++"], status=1))
    with pytest.raises(CompileFailedError) as caught:
        build_engine("aarch64", V82, cache=cache)
    assert "static" in str(caught.value.hint)
    monkeypatch.setenv("STANDIN", standins.behaviour(programs=["llama-server"]))
    with pytest.raises(CompileFailedError, match="did not make llama-bench"):
        build_engine("aarch64", V82, cache=cache)
    # A toolchain that compiles for something else than it was asked for.
    monkeypatch.setenv("STANDIN", standins.behaviour(program=elf("x86_64")))
    with pytest.raises(UsageError, match="built for x86_64"):
        build_engine("aarch64", V82, cache=cache)
    assert list_engines(cache) == []
    assert leftovers(cache.root) == []
    assert not any(path.name == "tree" for path in cache.root.rglob("*"))


def test_a_failed_rebuild_keeps_what_was_there(
    standins: StandIns, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = build_engine("aarch64", V82, cache=cache)
    before = tree(engine.path)
    monkeypatch.setenv("STANDIN", standins.behaviour(status=1))
    with pytest.raises(CompileFailedError):
        build_engine("aarch64", V82, cache=cache, force=True)
    assert tree(engine.path) == before
    assert [found.path for found in list_engines(cache)] == [engine.path]


def test_progress_of_make(standins: StandIns, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["[  1%] Building", "[ 42%] Building", "[ 42%] Built target", "[100%] Linking"]
    monkeypatch.setenv("STANDIN", standins.behaviour(lines=lines))
    progress = Recorder()
    build_engine("aarch64", V82, cache=cache, progress=progress)
    assert (progress.tasks[-1]["total"], progress.tasks[-1]["done"]) == (100, 100)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_the_compilers_and_leaves_nothing(
    standins: StandIns, cache: Cache, tmp_path: Path, number: signal.Signals
) -> None:
    marker = tmp_path / "compiling"
    architecture, variant = "aarch64", "armv8-a"
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = {
        **os.environ,
        "COMPACT_EDGE_CACHE": str(cache.root),
        "TMPDIR": str(scratch),
        "STANDIN": standins.behaviour(wait=str(marker)),
    }
    words = command("engine", "build", "--arch", architecture, "--isa", variant)
    with subprocess.Popen(words, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not marker.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert marker.exists(), process.stderr.read() if process.stderr is not None else ""
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
    compiler = int(marker.read_text())
    deadline = time.monotonic() + 30
    while Path(f"/proc/{compiler}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    with pytest.raises(ProcessLookupError):
        os.kill(compiler, 0)
    assert leftovers(cache.root, scratch) == []
    assert list_engines(cache) == []


def test_a_changed_binary_is_never_taken(standins: StandIns, cache: Cache) -> None:
    features = {"neon", "dotprod", "fp16"}
    engine = build_engine("aarch64", V82, cache=cache)
    content = engine.server.read_bytes()
    engine.server.write_bytes(content[:-1] + b"X")
    with pytest.raises(DamagedFileError, match="sha256 differs") as caught:
        find_engine(cache, "aarch64", features)
    assert "--force" in str(caught.value.hint)
    progress = Recorder()
    assert list_engines(cache, progress) == []
    assert "sha256" in progress.notes[0]
    progress = Recorder()
    again = build_engine("aarch64", V82, cache=cache, progress=progress)
    assert any("sha256" in note for note in progress.notes)
    assert again.server.read_bytes() == content

    manifest = engine.path / "engine.json"
    manifest.write_text(manifest.read_text().replace("llama-bench", "llama-bEnch"))
    with pytest.raises(DamagedFileError):
        find_engine(cache, "aarch64", features)


def test_changed_sources_are_not_compiled(standins: StandIns, cache: Cache) -> None:
    build_engine("aarch64", V82, cache=cache)
    (archive,) = (cache.root / "engine-source").glob("*/source.tar.gz")
    content = archive.read_bytes()
    archive.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DamagedFileError, match="changed after the download"):
        build_engine("aarch64", "armv8-a", cache=cache)


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"neon", "dotprod", "fp16", "i8mm"}, V82),
        ({"neon", "dotprod"}, "armv8-a"),
        (set(), "armv8-a"),
    ],
)
def test_the_best_that_a_cpu_runs_is_found(standins: StandIns, cache: Cache, features: set[str], expected: str) -> None:
    assert find_engine(cache, "aarch64", features) is None
    for variant in (V82, "armv8-a"):
        build_engine("aarch64", variant, cache=cache)
    (cache.root / "engine" / "stray").mkdir()
    found = find_engine(cache, "arm64", features)
    assert found is not None
    assert found.variant == expected
    assert find_engine(cache, "x86_64", features) is None


@pytest.mark.parametrize(
    ("missing", "message"),
    [("cmake", "cmake is not installed"), ("aarch64-linux-gnu-g++", "no compiler for aarch64")],
)
def test_a_missing_tool_is_named_with_its_package(
    standins: StandIns, cache: Cache, monkeypatch: pytest.MonkeyPatch, missing: str, message: str
) -> None:
    (standins.bin / missing).unlink()
    monkeypatch.setenv("PATH", str(standins.bin))
    with pytest.raises(ToolUnavailableError, match=message) as caught:
        build_engine("aarch64", V82, cache=cache)
    assert "apt install" in str(caught.value.hint)
    assert standins.calls == []


def test_what_is_built_needs_no_tools(standins: StandIns, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = build_engine("aarch64", V82, cache=cache)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    shutil.rmtree(cache.root / "engine-source")
    assert build_engine("aarch64", V82, cache=cache).path == engine.path


def test_no_sources_no_engine(standins: StandIns, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(ToolUnavailableError, match="ERROR") as caught:
        build_engine("aarch64", V82, cache=cache)
    assert "package index" in str(caught.value.hint)
    assert leftovers(cache.root) == []


def test_an_archive_cannot_write_outside_its_folder(tmp_path: Path) -> None:
    hostile = {"vendor/llama.cpp/src/../../../../../escaped.txt": b"x"}
    archive = source_archive(tmp_path / "a.tar.gz", VERSION, hostile)
    with pytest.raises(DamagedFileError, match="not a usable source archive"):
        unpack(archive, tmp_path / "inner" / "target")
    assert not list(tmp_path.rglob("escaped.txt"))
    archive.write_bytes(b"no archive")
    with pytest.raises(DamagedFileError):
        unpack(archive, tmp_path / "target")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--arch", "sparc"), "unknown architecture 'sparc'"),
        (("--arch", "aarch64", "--isa", "armv9"), "unknown variant 'armv9' of aarch64"),
        (("--arch", "x86_64", "--target", "phone-arm64"), "phone-arm64 is aarch64"),
        (("--target", "no-such"), "no target named"),
    ],
)
def test_wrong_words(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str) -> None:
    assert cli.run(["engine", "build", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_command(
    standins: StandIns, cache: Cache, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMPACT_EDGE_CACHE", str(cache.root))
    assert cli.run(["engine", "list"]) == 0
    assert "no engine" in capsys.readouterr().out
    # The phone's profile promises the dot product and no half precision.
    assert cli.run(["engine", "build", "--target", "phone-arm64", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["architecture"], printed["variant"], printed["built_now"]) == ("aarch64", "armv8.2-a+dotprod", True)
    assert cli.run(["engine", "build", "--target", "raspberry-pi-5"]) == 0
    out, err = capsys.readouterr()
    assert V82 in out
    assert "llama-server" in out
    assert "the best that raspberry-pi-5" in err
    assert cli.run(["engine", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [entry["variant"] for entry in listed] == ["armv8.2-a+dotprod", V82]
    assert cli.run(["engine", "build", "--isa", "list"]) == 0
    assert "x86-64-v3" in capsys.readouterr().out
    assert cli.run(["engine", "build", "--help"]) == 0
    assert cli.run(["engine", "list", "--debug"]) == 0
