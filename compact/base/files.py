"""Write files: canonical JSON, hashes, and atomic publication of directories.

A directory is published in three steps:
    1. It is built in a hidden temporary directory next to the target. The name contains the process id.
    2. Every file is flushed to disk.
    3. One rename moves it to the target.

A killed process may leave its temporary directory behind. The next publication of the same target removes it.
"""

from __future__ import annotations

import codecs
import ctypes
import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compact.base.errors import DamagedFileError, DiskFullError, OutputExistsError, StorageError, UnsafePathError

CHUNK = 1 << 20
SUMS = "SHA256SUMS"
# Space to leave free on the file system, so that other programs on the machine keep working.
_SPARE_BYTES = 64 << 20


def canonical_json(value: Any) -> bytes:
    """Return UTF-8 JSON with sorted keys and no white space. Equal values give equal bytes. NaN raises ValueError."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def sha256_json(value: Any) -> str:
    """Return the hex sha256 of a value's canonical JSON. Stages use it as the id of their results."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the hex sha256 of a file, read in chunks. Raises StorageError if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(CHUNK):
                digest.update(block)
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror or error})") from error
    return digest.hexdigest()


def _no_constant(name: str) -> Any:
    # Python's parser accepts NaN and Infinity. They are not valid JSON, and `canonical_json` cannot write them.
    raise ValueError(f"{name} is not a JSON value")


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        DamagedFileError: the file is not JSON or not UTF-8.
        StorageError: the file cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path}: not valid JSON ({error})", _how_to_correct(path)) from error


def _how_to_correct(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(3)
    if start.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "save the file as UTF-8 without a byte order mark; Transformers cannot read it with one"
    return "correct the file, or download or make it again"


def read_json_object(path: Path) -> dict[str, Any]:
    """Parse a JSON file that must contain an object.

    Raises:
        DamagedFileError: the file is not JSON, not UTF-8 or not an object.
        StorageError: the file cannot be read.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise DamagedFileError(
            f"{path}: expected a JSON object, found {type(value).__name__}",
            "correct the file, or download or make it again",
        )
    return value


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, with \\n line endings on every platform."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: readers see the old file or the whole new one.

    Raises:
        DiskFullError: the disk is full.
        StorageError: the directory does not exist or is not writable.
    """
    work = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        work.write_bytes(data)
        _sync(work)
        work.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise as_storage_error(error, path) from error
    finally:
        work.unlink(missing_ok=True)


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    """Write JSON for people to read: UTF-8, indented, with a newline at the end."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def safe_child(directory: Path, name: str, where: str) -> Path:
    """Return `directory / name` for an untrusted name, such as one read from a file.

    Args:
        directory: the directory that the path must stay in.
        name: a plain file name.
        where: the file that contains the name, for messages.

    Raises:
        UnsafePathError: the name is empty, `.` or `..`, or has a separator, a drive or a null character.
    """
    if not name or name in {".", ".."} or any(mark in name for mark in ("/", "\\", ":", "\0")):
        raise UnsafePathError(
            f"{where}: file name {name[:80]!r} points outside its directory",
            "names of files inside a checkpoint must be plain names",
        )
    return directory / name


def check_free_space(directory: Path, needed: int) -> None:
    """Check that the file system of `directory` has enough space. The directory need not exist yet.

    Raises:
        DiskFullError: less than `needed` bytes are free, in addition to a reserve of 64 MiB.
    """
    existing = directory
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed + _SPARE_BYTES:
        raise DiskFullError(
            f"{directory}: {needed / 1e6:.0f} MB are needed, but only {free / 1e6:.0f} MB are free",
            "free some space, or name a directory on another disk",
        )


def copy_hashed(source: Path, target: Path) -> str:
    """Copy a file and return the sha256 of the copied bytes. Raises StorageError and DiskFullError."""
    digest = hashlib.sha256()
    try:
        with source.open("rb") as read, target.open("wb") as write:
            while block := read.read(CHUNK):
                digest.update(block)
                write.write(block)
    except OSError as error:
        raise as_storage_error(error, target) from error
    return digest.hexdigest()


def as_storage_error(error: OSError, path: Path) -> StorageError:
    """Return the StorageError or DiskFullError for an OSError that occurred at `path`."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return DiskFullError(f"{path}: the disk is full", "free some space, or name a directory on another disk")
    return StorageError(f"{path}: {error.strerror or error}")


def write_sums(directory: Path) -> dict[str, str]:
    """Write `SHA256SUMS` (in the format of `sha256sum`) for all other files in `directory`. Return name -> sha256."""
    sums = {
        path.relative_to(directory).as_posix(): sha256_file(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != SUMS
    }
    write_text(directory / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sums.items()))
    return sums


def read_sums(directory: Path) -> dict[str, str]:
    """Parse `SHA256SUMS`.

    Returns:
        Relative path -> sha256.

    Raises:
        DamagedFileError: the file does not exist, is not UTF-8, or has a malformed line.
        UnsafePathError: a name points outside the directory.
    """
    path = directory / SUMS
    if not path.is_file():
        raise DamagedFileError(f"{path}: no such file", "name a directory that compact-edge published")
    sums: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DamagedFileError(f"{path}: not UTF-8 text", "download or build the directory again") from error
    for number, line in enumerate(lines, 1):
        digest, _, name = line.partition("  ")
        if len(digest) != 64 or not all(c in "0123456789abcdef" for c in digest) or not name:
            raise DamagedFileError(
                f"{path}:{number}: not in the format of sha256sum", "download or build the directory again"
            )
        for part in name.split("/"):
            safe_child(directory, part, f"{path}:{number}")
        sums[name] = digest
    return sums


def check_sums(
    directory: Path, sums: Mapping[str, str], hint: str, *, sha256_of: Callable[[Path], str] = sha256_file
) -> None:
    """Check every file that a `SHA256SUMS` lists.

    Args:
        directory: the directory that contains the files.
        sums: relative path -> sha256, from `read_sums`.
        hint: what the user should do about a missing or changed file.
        sha256_of: hashes a file.

    Raises:
        DamagedFileError: a file is missing, or its hash differs.
    """
    for name, digest in sums.items():
        path = directory / name
        if not path.is_file():
            raise DamagedFileError(f"{path}: missing, but listed in {SUMS}", hint)
        if sha256_of(path) != digest:
            raise DamagedFileError(f"{path}: damaged, its sha256 differs from that in {SUMS}", hint)


def _sync(path: Path) -> None:
    """Fsync a file or directory. Does nothing on systems that cannot sync a directory (Windows)."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno in {errno.EIO, errno.ENOSPC, errno.EDQUOT}:
            raise as_storage_error(error, path) from error
    finally:
        os.close(handle)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _remove_stale(parent: Path, prefix: str) -> None:
    for path in parent.iterdir():
        if not path.name.startswith(prefix):
            continue
        process = path.name[len(prefix) :].split("-")[0]
        if process.isdigit() and not _alive(int(process)):
            shutil.rmtree(path, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two directories atomically (Linux `renameat2`). Return False if the system cannot do this."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        renameat2: Callable[..., int] = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    at_fdcwd, rename_exchange = -100, 2
    return renameat2(at_fdcwd, os.fsencode(first), at_fdcwd, os.fsencode(second), rename_exchange) == 0


@contextmanager
def publish(target: Path, *, force: bool = False, needed_bytes: int = 0) -> Iterator[Path]:
    """Publish a directory at `target` atomically: it appears complete or not at all.

    Yields a temporary directory next to the target for the block to fill. When the block ends, all files are synced
    and the directory is renamed to `target`. If the block raises (including KeyboardInterrupt), the temporary directory
    is removed and an existing `target` stays unchanged.

    Args:
        target: the directory to publish.
        force: replace an existing directory.
        needed_bytes: expected size, to check the free space first.

    Raises:
        OutputExistsError: `target` exists and `force` is false. Checked before the block runs and again at the end.
        DiskFullError: there is not enough space.
        StorageError: reading or writing failed.
    """
    # If the target is a link, keep the link and replace the directory that it points to.
    target = target.resolve() if target.is_symlink() else target.absolute()
    if target.exists() and (not force or not target.is_dir()):
        raise OutputExistsError(f"{target}: already exists", "give --force to replace it, or another --out")
    check_free_space(target.parent, needed_bytes)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{target.name}.tmp-"
        _remove_stale(target.parent, prefix)
        work = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=target.parent))
    except OSError as error:
        raise as_storage_error(error, target) from error
    try:
        try:
            yield work
        except OSError as error:
            raise as_storage_error(error, target) from error
        try:
            for path in sorted(work.rglob("*")):
                _sync(path)
            work.chmod(0o755)
            _sync(work)
            _swap_in(work, target, force=force)
            _sync(target.parent)
        except OSError as error:
            raise as_storage_error(error, target) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _swap_in(work: Path, target: Path, *, force: bool) -> None:
    if not target.exists():
        try:
            work.rename(target)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
        else:
            return
    if not force:
        raise OutputExistsError(
            f"{target}: was created in the meantime", "give --force to replace it, or another --out"
        )
    if _exchange(work, target):
        return  # `work` now contains the previous directory, and the caller removes it
    previous = work.with_name(work.name + "-old")
    target.rename(previous)
    try:
        work.rename(target)
    except BaseException:
        previous.rename(target)
        raise
    shutil.rmtree(previous, ignore_errors=True)


def tree_bytes(directory: Path) -> int:
    """Return the total size of all files in a directory tree, in bytes."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def frozen(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a deep copy of a JSON object, so that callers do not share mutable parts."""
    copy: dict[str, Any] = json.loads(canonical_json(value))
    return copy
