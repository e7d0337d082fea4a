"""The one writer of files: canonical JSON, hashes, and directories that appear whole or not at all.

A directory is built in a temporary directory beside its target, every file is flushed to disk, the manifest is
written last, and one rename publishes it. What a killed process leaves is a hidden directory that names its process;
the next publication of the same target removes it.
"""

from __future__ import annotations

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

from compact.errors import DamagedFileError, DiskFullError, OutputExistsError, StorageError, UnsafePathError

CHUNK = 1 << 20
SUMS = "SHA256SUMS"
# Room left on the file system beside what is about to be written, so that the rest of the machine goes on working.
_SPARE_BYTES = 64 << 20


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no white space: equal values give equal bytes. Raises ValueError on NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def sha256_json(value: Any) -> str:
    """Hex sha256 of the canonical JSON of a value: the id of every stage's result."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in chunks. Raises StorageError."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(CHUNK):
                digest.update(block)
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror or error})") from error
    return digest.hexdigest()


def _no_constant(name: str) -> Any:
    # Python reads NaN and Infinity, which are no JSON and which nothing here could write again.
    raise ValueError(f"{name} is no JSON value")


def read_json(path: Path) -> Any:
    """Parse a JSON file. Raises DamagedFileError (not JSON, not UTF-8) and StorageError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path}: not valid JSON ({error})") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """Parse a JSON file that must hold an object. Raises DamagedFileError and StorageError."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise DamagedFileError(f"{path}: a JSON object was expected, not {type(value).__name__}")
    return value


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text with \\n line ends on every platform."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)


def write_bytes(path: Path, data: bytes) -> None:
    """Write one file that is there whole or not at all; an older one of that name is replaced.

    Raises:
        StorageError, DiskFullError: the directory is missing, is full or may not be written.
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
    """Write JSON for people (indented, UTF-8, newline at the end)."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def safe_child(directory: Path, name: str, where: str) -> Path:
    """`directory / name` for a name that came out of a file.

    Raises:
        UnsafePathError: the name is absolute, has a parent step, a separator or a drive, or is empty.
    """
    if not name or name in {".", ".."} or any(mark in name for mark in ("/", "\\", ":", "\0")):
        raise UnsafePathError(
            f"{where}: file name {name[:80]!r} points outside its directory",
            "names of files inside a checkpoint must be plain names",
        )
    return directory / name


def check_free_space(directory: Path, needed: int) -> None:
    """Raise DiskFullError when the file system of `directory` (or its nearest parent) has less than `needed` bytes."""
    existing = directory
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed + _SPARE_BYTES:
        raise DiskFullError(
            f"{directory}: {needed / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free",
            "free some space, or name a directory on another disk",
        )


def copy_hashed(source: Path, target: Path) -> str:
    """Copy one file and return the sha256 of the bytes copied. Raises StorageError and DiskFullError."""
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
    """The typed error for an OSError met while writing `path`."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return DiskFullError(f"{path}: the disk is full", "free some space, or name a directory on another disk")
    return StorageError(f"{path}: {error.strerror or error}")


def write_sums(directory: Path) -> dict[str, str]:
    """Write `SHA256SUMS` (the format of `sha256sum`) over every other file below `directory`; return name -> sha256."""
    sums = {
        path.relative_to(directory).as_posix(): sha256_file(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != SUMS
    }
    write_text(directory / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sums.items()))
    return sums


def read_sums(directory: Path) -> dict[str, str]:
    """Parse `SHA256SUMS`. Raises DamagedFileError on a malformed line and UnsafePathError on a name that leaves."""
    path = directory / SUMS
    if not path.is_file():
        raise DamagedFileError(f"{path}: no such file", "is this a directory that `compact-edge` published?")
    sums: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DamagedFileError(f"{path}: not UTF-8 text") from error
    for number, line in enumerate(lines, 1):
        digest, _, name = line.partition("  ")
        if len(digest) != 64 or not all(c in "0123456789abcdef" for c in digest) or not name:
            raise DamagedFileError(f"{path}:{number}: not a line of sha256sum")
        for part in name.split("/"):
            safe_child(directory, part, f"{path}:{number}")
        sums[name] = digest
    return sums


def check_sums(
    directory: Path, sums: Mapping[str, str], hint: str, *, sha256_of: Callable[[Path], str] = sha256_file
) -> None:
    """Hash every file that a `SHA256SUMS` lists.

    Args:
        directory: of the list.
        sums: what `read_sums` read.
        hint: what the user should do about a file that is missing or changed.
        sha256_of: hashes a file.

    Raises:
        DamagedFileError: one is missing, or another file.
    """
    for name, digest in sums.items():
        path = directory / name
        if not path.is_file():
            raise DamagedFileError(f"{path}: missing, but listed in {SUMS}", hint)
        if sha256_of(path) != digest:
            raise DamagedFileError(f"{path}: damaged, its sha256 differs", hint)


def _sync(path: Path) -> None:
    """fsync a file or directory; systems that cannot sync a directory (Windows) are let be."""
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
    """Swap two directories in one step where the system can (Linux `renameat2`); False where it cannot."""
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
    """Build a directory that appears at `target` whole, or not at all.

    Yields a temporary directory beside the target. When the block ends, every file in it is synced and the directory
    is renamed to `target`; when the block raises (KeyboardInterrupt too), it is removed and an earlier `target` stays.

    Raises:
        OutputExistsError: `target` is there and `force` is false (checked before the block runs, and again at the end).
        DiskFullError, StorageError: the file system refuses.
    """
    # A link stays a link: what it points to is replaced.
    target = target.resolve() if target.is_symlink() else target.absolute()
    if target.exists() and (not force or not target.is_dir()):
        raise OutputExistsError(f"{target}: exists already", "give --force to replace it, or another --out")
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
        raise OutputExistsError(f"{target}: appeared meanwhile", "give --force to replace it, or another --out")
    if _exchange(work, target):
        return  # `work` now holds the earlier directory and is removed by the caller
    aside = work.with_name(work.name + "-old")
    target.rename(aside)
    try:
        work.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def tree_bytes(directory: Path) -> int:
    """Bytes of all files below a directory."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def frozen(value: Mapping[str, Any]) -> dict[str, Any]:
    """A deep copy of a JSON object through JSON, so that no caller shares mutable parts."""
    copy: dict[str, Any] = json.loads(canonical_json(value))
    return copy
