"""Lock a training run, so that two processes do not overwrite each other's state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from compact.base.distributed import broadcast_json, is_main, world_size
from compact.base.errors import StorageError
from compact.base.files import as_storage_error
from compact.base.progress import Progress

_POLL_SECONDS = 1.0


@contextmanager
def exclusive_run(run: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock of a run's directory (the file `NAME.lock` beside it) within the block.

    A single process waits until the lock is free. A group of processes does not wait, because the holder of the lock
    may be waiting for their machine. In a group, the first process holds the lock for all.

    The lock file is deleted when the block succeeds. The block must therefore publish its result before it ends, so
    that the next holder finds the result.

    Raises:
        StorageError: the directory cannot be written, or a group of processes finds the lock taken.
    """
    lock = FileLock(run.with_name(f"{run.name}.lock"))
    refusal: list[str] | None = None
    if is_main():
        try:
            _acquire(lock, run, progress)
        except StorageError as error:
            refusal = [error.message, error.hint or ""]
    # Tell all processes about the error. Otherwise the others would wait for a first process that has stopped.
    if (refused := broadcast_json(refusal)) is not None:
        message, hint = refused
        raise StorageError(message, hint or None)
    try:
        yield
        with suppress(OSError):  # Windows does not delete open files; then the file stays
            if is_main():
                Path(lock.lock_file).unlink(missing_ok=True)
    finally:
        lock.release()


def _acquire(lock: FileLock, run: Path, progress: Progress) -> None:
    try:
        run.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if world_size() > 1:
                raise StorageError(
                    f"{run}: another process is training this model", "start again after it has ended"
                ) from None
            progress.note("recovery: another process is training this model; waiting for its result")
            lock.acquire(timeout=-1, poll_interval=_POLL_SECONDS)
    except OSError as error:
        raise as_storage_error(error, run) from error
