"""Folders with llama.cpp's binaries: built by this program, or provided by the user."""

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

from compact.base.cache import Cache
from compact.base.errors import CompactEdgeError, DamagedFileError, ModelNotFoundError, UnsafePathError, UsageError
from compact.base.files import as_storage_error, read_json_object, safe_child, sha256_file
from compact.base.progress import SILENT, Progress
from runtime_bench.toolchain.binary_header import BinaryHeader, read_header
from runtime_bench.toolchain.engine_flags import VARIANTS, Variant, architecture_named

KIND = "engine"  # kind of the cache entries
MANIFEST = "engine.json"
SERVER = "llama-server"
BENCH = "llama-bench"
LIBRARY = "llama-cpp-python"  # its source archive contains llama.cpp's sources

_LIBRARY_NAME = re.compile(r".*\.so(\.\d+)*|.*\.(dylib|dll|metal|metallib)", re.IGNORECASE)
_VERSION_LINE = re.compile(r"^version: (.{1,200})$", re.MULTILINE)
_VERSION_SECONDS = 30
# System -> systems whose binaries it runs. A static Linux binary needs only the kernel, so Android runs it.
_RUNS_ON: Mapping[str, tuple[str, ...]] = {"android": ("android", "linux")}


@dataclass(frozen=True)
class EngineFolder:
    """One set of llama.cpp's binaries.

    Attributes:
        path: the folder.
        server: path of llama-server.
        bench: path of llama-bench; None if it is missing.
        files: every file that a device needs: the two programs and their shared libraries, all in `path`. A file can be
            a link to another file of the folder, because loaders look up libraries by such names.
        architecture: `aarch64` or `x86_64`.
        system: `linux`, `android`, `darwin` or `windows`.
        variant: name of the CPU variant (`runtime_bench.toolchain.engine_flags`); None for a folder of the user.
        version: llama.cpp's version as `llama-server --version` prints it; `unknown` if it could not run.
        source_version: version of llama-cpp-python that had the sources; None for a folder of the user.
        flags: CMake variables of the build; empty for a folder of the user.
        origin: `built` (by `build_engine`) or `user`.
        compiler: name and version; `unknown` for a folder of the user.
        toolchain: `native`, `gnu` (cross compiler), `ndk` (Android); None for a folder of the user.
        sha256: name -> sha256 of each of `files`; empty for a folder of the user.
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
        """Return plain values for JSON."""
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
    """Return the system of this machine: `linux`, `darwin` or `windows`."""
    return "windows" if sys.platform == "win32" else "darwin" if sys.platform == "darwin" else "linux"


def runs_here(header: BinaryHeader) -> bool:
    """Return whether this machine can run a program with this header."""
    try:
        here = architecture_named(platform.machine() or "unknown")
    except UsageError:
        return False
    return here in header.architectures and header.system == this_system()


def server_version(server: Path) -> str:
    """Return llama.cpp's version as the program prints it. `unknown` if it does not start or prints none."""
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
    # Sources outside a git repository have no build number or commit, and llama.cpp prints these words instead.
    return found[1].removesuffix(" (build 0, commit unknown)").strip() if found else "unknown"


def open_engine(cache: Cache, key: str) -> EngineFolder:
    """Return the engine of a cache entry. Every file is checked against its recorded sha256.

    Raises:
        DamagedFileError: a file is missing or was changed after the build, or the entry does not describe an engine.
    """
    path = cache.path(KIND, key)
    if cache.find(KIND, key) is None:
        raise DamagedFileError(f"{path}: incomplete cache entry", "build the engine again: compact-edge engine build")
    manifest = read_json_object(path / MANIFEST)
    try:
        architecture, variant = str(manifest["architecture"]), str(manifest["variant"])
        again = f"build it again: compact-edge engine build --arch {architecture} --isa {variant} --force"
        for name in (MANIFEST, *manifest["sha256"]):
            file = safe_child(path, name, str(path / MANIFEST))
            digest = sha256_file(file)
            if digest != cache.recorded_sha256(KIND, key, name) or manifest["sha256"].get(name, digest) != digest:
                raise DamagedFileError(f"{file}: changed after the build, its sha256 differs", again)
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
    """Return the engines in the cache, by architecture and variant.

    Damaged ones are reported to `progress` and left out.
    """
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
    """Return the best engine in the cache for a device, or None if the device can run none of them.

    An engine of the installed version of llama-cpp-python is preferred, then the variant with more instructions, then
    binaries for exactly this system.

    Args:
        cache: the cache with the engines that were built.
        architecture: architecture of the device, by any of its names.
        features: features of its CPU, named as in target profiles.
        system: system of the device: `linux`, `android`, `darwin` or `windows`.

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
            # The most basic variant fits every CPU of the architecture, even without known features.
            if not (_is_plainest(variant) or variant.needs <= has):
                continue
            current = manifest["source_version"] == installed_version()
            closeness = -systems.index(manifest["system"])
            fitting.append((current, _rank(variant.name), closeness, str(manifest["source_version"]), key))
        except (CompactEdgeError, KeyError, TypeError):
            continue  # not an engine; `list_engines` names it
    return open_engine(cache, max(fitting)[-1]) if fitting else None


def read_engine_dir(path: Path, *, architecture: str, system: str | None = None) -> EngineFolder:
    """Read a user's folder with llama-server, for example an unpacked release of llama.cpp.

    Only llama-server, llama-bench, the folder's shared libraries and Metal's shaders are used.

    Args:
        path: the folder.
        architecture: required architecture of the binaries.
        system: required system of the binaries; None for any.

    Raises:
        ModelNotFoundError: the folder does not exist or has no llama-server.
        DamagedFileError: llama-server is not a program.
        UsageError: the binaries are for another architecture or system.
        UnsafePathError: the name of a library is not printable, or a link leads out of the folder.
    """
    architecture = architecture_named(architecture)
    if not path.is_dir():
        raise ModelNotFoundError(f"{path}: no such folder", "name the folder with llama-server")
    # In release archives and build trees of llama.cpp the programs are one or two folders deeper.
    places = ((folder, _program(folder, SERVER)) for folder in (path, path / "bin", path / "build" / "bin"))
    found = next(((folder, program) for folder, program in places if program is not None), None)
    if found is None:
        raise ModelNotFoundError(f"{path}: contains no {SERVER}", "name the folder with llama-server")
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
    """Read the header of a program, which must be for `architecture`. Raises DamagedFileError and UsageError."""
    header = read_header(file)
    _check_header(file, header, architecture, None)
    return header


def installed_version() -> str | None:
    """Return the version of the installed llama-cpp-python without its local part (`+cu124`), or None."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(LIBRARY).partition("+")[0]
    except PackageNotFoundError:
        return None


def _check_header(file: Path, header: BinaryHeader, architecture: str, system: str | None) -> None:
    if architecture not in header.architectures:
        found = ", ".join(header.architectures) or "nothing"
        raise UsageError(
            f"{file}: built for {found} ({header.format}), but the device is {architecture}",
            f"name binaries for {architecture}, or build them: compact-edge engine build --arch {architecture}",
        )
    if system is not None and header.system not in _RUNS_ON.get(system, (system,)):
        raise UsageError(
            f"{file}: built for {header.system} ({header.format}), but the device runs {system}",
            f"name binaries for {system}",
        )


def _program(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.exe") if path.is_file()), None)


def _is_library(entry: Path) -> bool:
    return _LIBRARY_NAME.fullmatch(entry.name.replace("\n", " ")) is not None and entry.is_file()


def _library(entry: Path, folder: Path) -> Path:
    if not entry.name.isprintable():
        raise UnsafePathError(f"{folder}: file name {entry.name[:80]!r} contains control characters", "rename the file")
    if folder.resolve() not in entry.resolve().parents:
        raise UnsafePathError(
            f"{entry}: a link that leads out of its folder", "copy the library into the folder with llama-server"
        )
    return entry


def _keys(cache: Cache) -> list[str]:
    root = cache.root / KIND
    try:
        # Hidden names belong to builds that are running or were killed.
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
