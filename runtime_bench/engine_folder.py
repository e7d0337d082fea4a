"""Folders with llama.cpp's binaries: those that were built here, and those of the user."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from compact.cache import Cache
from compact.errors import CompactEdgeError, DamagedFileError, ModelNotFoundError, UnsafePathError, UsageError
from compact.progress import SILENT, Progress
from compact.store import as_storage_error, read_json_object, safe_child, sha256_file
from runtime_bench.binary_header import BinaryHeader, read_header
from runtime_bench.engine_flags import VARIANTS, Variant, architecture_named

KIND = "engine"  # of the cache entries
MANIFEST = "engine.json"
SERVER = "llama-server"
BENCH = "llama-bench"
LIBRARY = "llama-cpp-python"  # the distribution whose source archive holds llama.cpp's sources

_LIBRARY_NAME = re.compile(r".*\.so(\.\d+)*|.*\.(dylib|dll|metal|metallib)", re.IGNORECASE)
_VERSION_LINE = re.compile(r"^version: (.{1,200})$", re.MULTILINE)
_VERSION_SECONDS = 30
# Which systems' binaries run on a system. A static Linux binary needs nothing but the kernel, so Android runs it.
_RUNS_ON: Mapping[str, tuple[str, ...]] = {"android": ("android", "linux")}


@dataclass(frozen=True)
class EngineFolder:
    """One set of llama.cpp's binaries.

    Attributes:
        path: the folder.
        server: llama-server in it.
        bench: llama-bench in it; None where it is not there.
        files: every file that a device needs, the two programs and their shared libraries; all lie in `path`. A name
            can be a link to another file of the folder: loaders look libraries up by that name.
        architecture: `aarch64` or `x86_64`.
        system: `linux`, `android`, `darwin` or `windows`.
        variant: name of the CPU variant (`runtime_bench.engine_flags`); None for the user's own, which does not say.
        version: llama.cpp's version as `llama-server --version` gives it; `unknown` where it could not be run.
        source_version: version of llama-cpp-python that the sources came with; None for the user's own.
        flags: CMake variables that it was built with; empty for the user's own.
        origin: `built` (by `build_engine`) or `user`.
        compiler: name and version; `unknown` for the user's own.
        toolchain: `native`, `gnu` (cross compiler), `ndk` (Android); None for the user's own.
        sha256: of each of `files`, by name; empty for the user's own.
    """

    path: Path
    server: Path
    bench: Path | None
    files: tuple[Path, ...]
    architecture: str
    system: str
    variant: str | None
    version: str
    source_version: str | None
    flags: Mapping[str, str]
    origin: Literal["built", "user"]
    compiler: str = "unknown"
    toolchain: str | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Bytes of all files that a device needs."""
        return sum(file.stat().st_size for file in self.files)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "path": str(self.path),
            "server": self.server.name,
            "bench": None if self.bench is None else self.bench.name,
            "files": [file.name for file in self.files],
            "size_bytes": self.size_bytes,
            "architecture": self.architecture,
            "system": self.system,
            "variant": self.variant,
            "version": self.version,
            "source_version": self.source_version,
            "flags": dict(self.flags),
            "origin": self.origin,
            "compiler": self.compiler,
            "toolchain": self.toolchain,
            "sha256": dict(self.sha256),
        }


def this_system() -> str:
    """The system of this machine: `linux`, `darwin` or `windows`."""
    return "windows" if sys.platform == "win32" else "darwin" if sys.platform == "darwin" else "linux"


def runs_here(header: BinaryHeader) -> bool:
    """Whether this machine itself can start such a program."""
    try:
        here = architecture_named(platform.machine() or "unknown")
    except UsageError:
        return False
    return here in header.architectures and header.system == this_system()


def server_version(server: Path) -> str:
    """llama.cpp's version as the program tells it; `unknown` where it does not start or tells none."""
    try:
        done = subprocess.run(
            [str(server), "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_VERSION_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    found = _VERSION_LINE.search((done.stderr + b"\n" + done.stdout).decode("utf-8", "replace"))
    # Sources outside a git repository have no build number or commit; the words for that are no part of a version.
    return found[1].removesuffix(" (build 0, commit unknown)").strip() if found else "unknown"


def open_engine(cache: Cache, key: str) -> EngineFolder:
    """The built engine of a cache entry, every file of it checked against its recorded sha256.

    Raises:
        DamagedFileError: a file is missing, was changed after the build, or the entry is not one of an engine.
    """
    path = cache.path(KIND, key)
    if cache.find(KIND, key) is None:
        raise DamagedFileError(f"{path}: not a whole cache entry", "build the engine again: compact-edge engine build")
    manifest = read_json_object(path / MANIFEST)
    try:
        architecture, variant = str(manifest["architecture"]), str(manifest["variant"])
        again = f"build it again: compact-edge engine build --arch {architecture} --isa {variant} --force"
        for name in (MANIFEST, *manifest["sha256"]):
            file = safe_child(path, name, str(path / MANIFEST))
            digest = sha256_file(file)
            if digest != cache.recorded_sha256(KIND, key, name) or manifest["sha256"].get(name, digest) != digest:
                raise DamagedFileError(f"{file}: was changed after it was built, its sha256 differs", again)
        if (architecture, variant) not in {(known.architecture, known.name) for known in VARIANTS}:
            raise ValueError("unknown variant")
        return EngineFolder(
            path=path,
            server=path / SERVER,
            bench=path / BENCH,
            files=tuple(path / name for name in sorted(manifest["sha256"])),
            architecture=architecture,
            system=str(manifest["system"]),
            variant=variant,
            version=str(manifest["version"]),
            source_version=str(manifest["source_version"]),
            flags={str(key): str(value) for key, value in manifest["flags"].items()},
            origin="built",
            compiler=str(manifest["compiler"]),
            toolchain=str(manifest["toolchain"]),
            sha256=dict(manifest["sha256"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise DamagedFileError(
            f"{path / MANIFEST}: does not describe an engine ({type(error).__name__})",
            "build the engine again: compact-edge engine build --force",
        ) from error


def list_engines(cache: Cache, progress: Progress = SILENT) -> list[EngineFolder]:
    """The engines that were built, by architecture and variant; damaged ones are named to `progress` and left out."""
    engines = []
    for key in _keys(cache):
        try:
            engines.append(open_engine(cache, key))
        except CompactEdgeError as error:
            progress.note(f"left out: {error.message}")
    return sorted(engines, key=lambda engine: (engine.architecture, _rank(engine.variant), engine.source_version or ""))


def find_engine(
    cache: Cache, architecture: str, features: Iterable[str], *, system: str = "linux"
) -> EngineFolder | None:
    """The best built engine for a device; None where there is none that it can run.

    An engine of the installed version of llama-cpp-python goes before one of another version, then the variant with
    more instructions, then binaries for the very system.

    Args:
        cache: where engines were built.
        architecture: of the device, any of its names.
        features: of its CPU, in the words of the target profiles.
        system: of the device: `linux`, `android`, `darwin` or `windows`.

    Raises:
        DamagedFileError: the best one was changed after it was built.
    """
    architecture, has = architecture_named(architecture), set(features)
    systems = _RUNS_ON.get(system, (system,))
    fitting: list[tuple[bool, int, int, str, str]] = []
    for key in _keys(cache):
        try:
            manifest = read_json_object(cache.path(KIND, key) / MANIFEST)
            variant = _variant(manifest["architecture"], manifest["variant"])
            if variant is None or variant.architecture != architecture or manifest["system"] not in systems:
                continue
            # What every CPU of the architecture has need not be named.
            if not (_is_plainest(variant) or variant.needs <= has):
                continue
            current = manifest["source_version"] == installed_version()
            closeness = -systems.index(manifest["system"])
            fitting.append((current, _rank(variant.name), closeness, str(manifest["source_version"]), key))
        except (CompactEdgeError, KeyError, TypeError):
            continue  # not an engine; `list_engines` names it
    return open_engine(cache, max(fitting)[-1]) if fitting else None


def read_engine_dir(path: Path, *, architecture: str, system: str | None = None) -> EngineFolder:
    """A user's own folder with llama-server, for example an unpacked release of llama.cpp.

    Beside llama-server and llama-bench the shared libraries of the folder (and Metal's shaders) travel to the device;
    other programs stay.

    Args:
        path: the folder.
        architecture: of the device that the binaries must be for.
        system: of that device; None to take what the binaries say.

    Raises:
        ModelNotFoundError: no folder, or no llama-server in it.
        DamagedFileError: llama-server is no program.
        UsageError: it is for another architecture or system.
        UnsafePathError: a library's name cannot be printed, or is a link that leaves the folder.
    """
    architecture = architecture_named(architecture)
    if not path.is_dir():
        raise ModelNotFoundError(f"{path}: no such folder", "name the folder that holds llama-server")
    # Release archives and build trees of llama.cpp hold the programs one or two folders further down.
    places = ((folder, _program(folder, SERVER)) for folder in (path, path / "bin", path / "build" / "bin"))
    found = next(((folder, program) for folder, program in places if program is not None), None)
    if found is None:
        raise ModelNotFoundError(f"{path}: no {SERVER} in it", "name the folder that holds llama-server")
    path, server = found
    header = read_header(server)
    _check_header(server, header, architecture, system)
    bench = _program(path, BENCH)
    try:
        libraries = tuple(_library(entry, path) for entry in sorted(path.iterdir()) if _is_library(entry))
    except OSError as error:
        raise as_storage_error(error, path) from error
    return EngineFolder(
        path=path,
        server=server,
        bench=bench,
        files=(server, *((bench,) if bench is not None else ()), *libraries),
        architecture=architecture,
        system=header.system,
        variant=None,
        version=server_version(server) if runs_here(header) else "unknown",
        source_version=None,
        flags={},
        origin="user",
    )


def check_binary(file: Path, architecture: str) -> BinaryHeader:
    """The header of a program that must be for `architecture`. Raises DamagedFileError and UsageError."""
    header = read_header(file)
    _check_header(file, header, architecture, None)
    return header


def installed_version() -> str | None:
    """Version of llama-cpp-python that is installed, without a local part (`+cu124`); None where there is none."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(LIBRARY).partition("+")[0]
    except PackageNotFoundError:
        return None


def _check_header(file: Path, header: BinaryHeader, architecture: str, system: str | None) -> None:
    if architecture not in header.architectures:
        found = ", ".join(header.architectures) or "nothing"
        raise UsageError(
            f"{file}: made for {found} ({header.format}), and the device is {architecture}",
            f"name binaries for {architecture}, or build them: compact-edge engine build --arch {architecture}",
        )
    if system is not None and header.system not in _RUNS_ON.get(system, (system,)):
        raise UsageError(
            f"{file}: made for {header.system} ({header.format}), and the device runs {system}",
            f"name binaries for {system}",
        )


def _program(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.exe") if path.is_file()), None)


def _is_library(entry: Path) -> bool:
    return _LIBRARY_NAME.fullmatch(entry.name.replace("\n", " ")) is not None and entry.is_file()


def _library(entry: Path, folder: Path) -> Path:
    if not entry.name.isprintable():
        raise UnsafePathError(f"{folder}: file name {entry.name[:80]!r} holds control characters", "rename the file")
    if folder.resolve() not in entry.resolve().parents:
        raise UnsafePathError(
            f"{entry}: a link that leaves its folder", "copy the library into the folder beside llama-server"
        )
    return entry


def _keys(cache: Cache) -> list[str]:
    root = cache.root / KIND
    try:
        # Hidden names are of builds that run now, or were killed.
        return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise as_storage_error(error, root) from error


def _variant(architecture: str, name: str) -> Variant | None:
    return next((known for known in VARIANTS if (known.architecture, known.name) == (architecture, name)), None)


def _is_plainest(variant: Variant) -> bool:
    return variant == next(known for known in VARIANTS if known.architecture == variant.architecture)


def _rank(name: str | None) -> int:
    return next((rank for rank, known in enumerate(VARIANTS) if known.name == name), -1)
