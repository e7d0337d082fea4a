"""llama.cpp's sources: the source archive of the installed llama-cpp-python, downloaded once and kept in the cache."""

from __future__ import annotations

import gzip
import sys
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from compact.base.cache import Cache
from compact.base.errors import DamagedFileError, ToolUnavailableError
from compact.base.files import as_storage_error, sha256_file, sha256_json, write_text
from compact.base.progress import Progress
from runtime_bench.toolchain.compile_process import CompileFailedError, build_environment, run_compile
from runtime_bench.toolchain.engine_folder import LIBRARY, installed_version

KIND = "engine-source"
ARCHIVE = "source.tar.gz"

_NEEDED_BYTES = 100_000_000
_INSIDE = PurePosixPath("vendor/llama.cpp")
# The parts that the two programs need; models, tests and documents are two thirds of the archive.
_PARTS = frozenset(
    {
        *("CMakeLists.txt", "LICENSE", "licenses", "cmake", "common", "ggml", "include", "scripts", "src", "tools"),
        *("vendor",),
    }
)
_MOST_BYTES = 1_000_000_000  # limit for the unpacked sources, which have 110 MB
_OFFLINE = (
    "the sources come from the package index: connect to it, or configure pip's index (pip config set global.index-url)"
)
# -ffile-prefix-map: messages of assertions contain paths of source files. Without it every build would contain this
# machine's folders, and builds would differ.
_PROJECT = """\
add_compile_options("-ffile-prefix-map=${CMAKE_SOURCE_DIR}/=" "-ffile-prefix-map=${CMAKE_BINARY_DIR}/=")
"""


def require_version() -> str:
    """Return the version of the installed llama-cpp-python. Raises ToolUnavailableError if it is not installed."""
    version = installed_version()
    if version is None:
        raise ToolUnavailableError(f"{LIBRARY} is not installed", "run: pip install 'compact-edge[prune]'")
    return version


def source_archive(cache: Cache, version: str, progress: Progress) -> Path:
    """Return the source archive of a version of llama-cpp-python.

    Raises:
        ToolUnavailableError: pip cannot fetch the archive.
        DamagedFileError: the archive in the cache was changed.
    """
    key = sha256_json({"distribution": LIBRARY, "version": version})

    def make(work: Path) -> None:
        progress.note(f"downloading the sources of {LIBRARY} {version} (about 80 MB)")
        _download(work, version, progress)

    path = cache.get_or_make(KIND, key, make, needed_bytes=_NEEDED_BYTES) / ARCHIVE
    # The sources are compiled and run, so a check of the size alone is not enough.
    if sha256_file(path) != cache.recorded_sha256(KIND, key, ARCHIVE):
        raise DamagedFileError(
            f"{path}: changed after the download, its sha256 differs", f"remove {path.parent} and run the command again"
        )
    return path


def unpack(archive: Path, target: Path) -> Path:
    """Unpack the needed parts of the archive and return the folder of llama.cpp's CMakeLists.txt.

    Raises:
        DamagedFileError: the archive does not contain llama.cpp's sources, or has a member outside its folder.
        StorageError: the disk is full.
    """
    root: str | None = None
    total = 0
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                parts = PurePosixPath(member.name).parts
                if parts[1:3] != _INSIDE.parts or len(parts) < 4 or parts[3] not in _PARTS:
                    continue
                total += member.size
                if total > _MOST_BYTES:
                    raise DamagedFileError(
                        f"{archive}: unpacks to more than {_MOST_BYTES / 1e9:.0f} GB",
                        "remove it from the cache and run the command again",
                    )
                tar.extract(member, target, filter="data")
                root = parts[0]
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DamagedFileError(
            f"{archive}: not a usable source archive ({error})", "remove it from the cache and run the command again"
        ) from error
    except OSError as error:
        raise as_storage_error(error, target) from error
    if root is None or not (target / root / _INSIDE / "CMakeLists.txt").is_file():
        raise DamagedFileError(
            f"{archive}: contains no llama.cpp", "remove it from the cache and run the command again"
        )
    return target / root / _INSIDE


def cmake_project(path: Path) -> Path:
    """Write the CMake lines that are added to llama.cpp's project. CMake quotes the paths for every generator."""
    write_text(path, _PROJECT)
    return path


def _download(work: Path, version: str, progress: Progress) -> None:
    folder = work / "download"
    folder.mkdir()
    words = [
        *(sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--quiet"),
        *("--no-deps", "--no-binary", LIBRARY, "--dest", str(folder), f"{LIBRARY}=={version}"),
    ]
    try:
        run_compile(
            words,
            f"downloading the sources of {LIBRARY} {version}",
            progress=progress,
            environment=build_environment(),
            directory=work,
            hint=_OFFLINE,
        )
    except CompileFailedError as error:
        raise ToolUnavailableError(error.message, _OFFLINE) from error
    archives = sorted(folder.glob("*.tar.gz"))
    if len(archives) != 1:
        raise ToolUnavailableError(f"pip downloaded no source archive of {LIBRARY} {version}", _OFFLINE)
    archives[0].rename(work / ARCHIVE)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
