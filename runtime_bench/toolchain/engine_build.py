"""Build llama.cpp's llama-server and llama-bench for a device, from the sources in llama-cpp-python's archive.

The sources have the installed version, so the device runs the version that the artifact was checked with. The binaries
are kept in the cache, where `runtime_bench.toolchain.engine_folder` finds them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from compact.base.cache import Cache
from compact.base.errors import DamagedFileError, ToolUnavailableError, UsageError
from compact.base.files import sha256_file, sha256_json, write_json
from compact.base.progress import SILENT, Progress
from runtime_bench.toolchain.compile_process import CompileFailedError, build_environment, run_compile
from runtime_bench.toolchain.engine_flags import (
    TARGETS,
    Toolchain,
    Variant,
    architecture_named,
    cross_compilers,
    portable_flags,
    this_architecture,
    toolchain_file,
    variant_named,
)
from runtime_bench.toolchain.engine_folder import (
    BENCH,
    KIND,
    MANIFEST,
    SERVER,
    EngineFolder,
    check_binary,
    open_engine,
    runs_here,
    server_version,
    this_system,
)
from runtime_bench.toolchain.engine_sources import cmake_project, require_version, source_archive, unpack

_VERSION = 1  # raise it when a change here gives different binaries for the same flags
_NEEDED_BYTES = 700_000_000  # sources 220 MB, objects 110 MB, binaries 40 MB, and a margin
_NO_CMAKE = "install cmake (Debian: apt install cmake ninja-build; macOS: brew install cmake ninja)"
_NO_CROSS = "install the cross compiler (Debian: apt install {package}), or name an Android NDK with --ndk"
_NO_COMPILER = "install a C++ compiler (Debian: apt install g++; macOS: xcode-select --install)"
_FAILED = "update the compiler, or see what this version of llama.cpp needs in its docs/build.md"


@dataclass(frozen=True)
class _Plan:
    """The settings of a build. Together with the version of the sources, they are the key in the cache."""

    architecture: str
    variant: Variant
    toolchain: Toolchain
    toolchain_version: str
    flags: Mapping[str, str]

    def key(self, source_version: str) -> str:
        # The compiler's version is not part of the key: an engine must be found without a compiler, and stays valid
        # after an update of the compiler. `engine.json` records the version.
        parts = {
            "format": _VERSION,
            "source": source_version,
            "architecture": self.architecture,
            "variant": self.variant.name,
            "toolchain": self.toolchain,
            "toolchain_version": self.toolchain_version,
            "flags": dict(self.flags),
        }
        return sha256_json(parts)


def build_engine(
    architecture: str,
    variant: str,
    *,
    cache: Cache,
    progress: Progress = SILENT,
    ndk: Path | None = None,
    jobs: int | None = None,
    force: bool = False,
) -> EngineFolder:
    """Return llama-server and llama-bench for an architecture, from the cache or compiled (5 to 10 minutes on 2 cores).

    This machine's own architecture uses the native compiler, another one the GNU cross compiler for Linux. `ndk`
    selects the compiler of an Android NDK. On Linux the binaries are static, so one set runs on every distribution.

    Args:
        architecture: `aarch64` or `x86_64`, or another name of these.
        variant: name of a CPU variant (`engine_flags.VARIANTS`).
        cache: stores sources and binaries.
        progress: receives the download and the compilation.
        ndk: folder of an Android NDK, for Android binaries; None for Linux or macOS.
        jobs: number of compilers at once; None for one per core.
        force: compile again even if the cache has the binaries.

    Raises:
        UsageError: an unknown architecture or variant.
        ToolUnavailableError: CMake, a compiler, the NDK or the sources are not available.
        CompileFailedError: compilation failed; the message quotes the errors.
        StorageError: the disk is full, or the cache cannot be written.
    """
    architecture = architecture_named(architecture)
    plan = _plan(architecture, variant_named(architecture, variant), ndk)
    # An engine in the cache needs neither a compiler nor the sources.
    version = require_version()
    key = plan.key(version)
    if not force and cache.find(KIND, key) is not None:
        try:
            engine = open_engine(cache, key)
        except DamagedFileError as error:
            progress.note(f"{error.message}; building it again")
            force = True
        else:
            cache.get_or_make(KIND, key, lambda _: None)  # counts the hit
            return engine
    tools = _tools(plan, ndk)
    archive = source_archive(cache, version, progress)

    def make(work: Path) -> None:
        _make(work, plan, tools, archive, source_version=version, progress=progress, jobs=jobs)

    cache.get_or_make(KIND, key, make, needed_bytes=_NEEDED_BYTES, replace=force)
    return open_engine(cache, key)


def _plan(architecture: str, variant: Variant, ndk: Path | None) -> _Plan:
    """Choose the toolchain. Raises ToolUnavailableError for a folder that is not an NDK."""
    toolchain: Toolchain = "gnu"
    version = ""
    if ndk is not None:
        toolchain, version = "ndk", _ndk_revision(ndk)
    elif architecture == _here():
        toolchain = "native"
    static = toolchain == "gnu" or (toolchain == "native" and this_system() == "linux")
    return _Plan(architecture, variant, toolchain, version, portable_flags(variant, toolchain, static=static))


def _tools(plan: _Plan, ndk: Path | None) -> list[str]:
    """Return CMake's arguments for the tools of this machine. Raises ToolUnavailableError and UsageError."""
    if os.name != "posix":
        raise UsageError(
            "engines can only be built on Linux and macOS", "on Windows, name a release of llama.cpp with --engine-dir"
        )
    if shutil.which("cmake") is None:
        raise ToolUnavailableError("cmake is not installed", _NO_CMAKE)
    if shutil.which("ninja") is not None:
        words = ["-G", "Ninja"]
    elif shutil.which("make") is not None:
        words = ["-G", "Unix Makefiles"]
    else:
        raise ToolUnavailableError("neither ninja nor make is installed", _NO_CMAKE)
    if ndk is not None:
        return [*words, f"-DCMAKE_TOOLCHAIN_FILE={toolchain_file(ndk.absolute())}"]
    if plan.toolchain == "native":
        if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "c++", "g++", "clang++")):
            raise ToolUnavailableError("no C++ compiler is installed", _NO_COMPILER)
        return words
    for language, name in zip(("C", "CXX"), cross_compilers(plan.architecture), strict=True):
        if (found := shutil.which(name)) is None:
            package = f"g++-{plan.architecture.replace('_', '-')}-linux-gnu"
            raise ToolUnavailableError(
                f"no compiler for {plan.architecture}: {name} is not installed", _NO_CROSS.format(package=package)
            )
        words.append(f"-DCMAKE_{language}_COMPILER={found}")
    return words


def _here() -> str | None:
    try:
        return this_architecture()
    except UsageError:
        return None


def _ndk_revision(ndk: Path) -> str:
    if not toolchain_file(ndk).is_file():
        raise ToolUnavailableError(
            f"{ndk}: not an Android NDK; build/cmake/android.toolchain.cmake is missing",
            "download the NDK from developer.android.com/ndk and name its folder",
        )
    try:
        text = (ndk / "source.properties").read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    pairs = (line.partition("=") for line in text.splitlines())
    return next((value.strip()[:40] for name, _, value in pairs if name.strip() == "Pkg.Revision"), "")


def _make(
    work: Path,
    plan: _Plan,
    tools: list[str],
    archive: Path,
    *,
    source_version: str,
    progress: Progress,
    jobs: int | None,
) -> None:
    """Fill a cache entry: compile in `work`, keep the two programs and `engine.json`, remove the rest."""
    tree, sources = work / "tree", work / "sources"
    environment = build_environment()
    source = unpack(archive, sources)
    project = cmake_project(work / "project.cmake")
    name = f"{plan.architecture} ({plan.variant.name})"
    progress.note(f"configuring llama.cpp {source_version} for {name}")
    configured = run_compile(
        [
            *("cmake", *tools, "-S", str(source), "-B", str(tree), f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={project}"),
            *(f"-D{name}={value}" for name, value in plan.flags.items()),
        ],
        f"configuring llama.cpp for {name}",
        progress=progress,
        environment=environment,
        directory=work,
        hint=_FAILED,
    )
    count = jobs if jobs is not None else _cores()
    run_compile(
        ["cmake", "--build", str(tree), "--parallel", str(count), "--target", *TARGETS],
        f"compiling llama.cpp for {name}",
        progress=progress,
        environment=environment,
        directory=work,
        hint=_FAILED,
    )
    compiler = _compiler(tree)
    for program in (SERVER, BENCH):
        made = tree / "bin" / program
        if not made.is_file():
            raise CompileFailedError(f"compiling llama.cpp for {name} did not make {program}", _FAILED)
        shutil.copyfile(made, work / program)
        (work / program).chmod(0o755)
    shutil.rmtree(tree)
    shutil.rmtree(sources)
    project.unlink()
    header = check_binary(work / SERVER, plan.architecture)
    check_binary(work / BENCH, plan.architecture)
    version = server_version(work / SERVER) if runs_here(header) else "unknown"
    if version == "unknown":
        version = _configured_version(configured)
    write_json(
        work / MANIFEST,
        {
            "source_version": source_version,
            "version": version,
            "architecture": plan.architecture,
            "system": header.system,
            "variant": plan.variant.name,
            "flags": dict(plan.flags),
            "toolchain": plan.toolchain,
            "toolchain_version": plan.toolchain_version,
            "compiler": compiler,
            "sha256": {program: sha256_file(work / program) for program in (SERVER, BENCH)},
        },
    )


def _cores() -> int:
    # Cores that this process may use: in a container fewer than the machine has. macOS does not report them.
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed is not None else os.cpu_count() or 1


def _compiler(tree: Path) -> str:
    """Return name and version of the C++ compiler from CMake's files; `unknown` if they do not have them."""
    for file in sorted(tree.glob("CMakeFiles/*/CMakeCXXCompiler.cmake")):
        values: dict[str, str] = {}
        for line in file.read_text("utf-8", "replace").splitlines():
            name, _, value = line.strip().removeprefix("set(").removesuffix(")").partition(" ")
            values[name] = value.strip('"')
        if values.get("CMAKE_CXX_COMPILER_ID"):
            return f"{values['CMAKE_CXX_COMPILER_ID']} {values.get('CMAKE_CXX_COMPILER_VERSION', '')}".strip()
    return "unknown"


def _configured_version(lines: list[str]) -> str:
    """Return llama.cpp's version from CMake's output, for binaries that this machine cannot run."""
    mark = "-- llama.cpp version: "
    return next((line.removeprefix(mark).strip()[:200] for line in lines if line.startswith(mark)), "unknown")
