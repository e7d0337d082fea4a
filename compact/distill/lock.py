"""One training of a model at a time: two would write one run's state over each other's."""

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
    """Hold the lock of a run's directory (`NAME.lock` beside it) within the block.

    A single process waits for the one that has it. Joined processes, of which the first has it for all, do not: the one
    that they would wait for may be waiting for their machine. The block must make what a later holder looks for first,
    as the lock's file goes when it ends well.

    Raises:
        StorageError: joined processes, and another process has it; or the directory may not be written.
    """
    lock = FileLock(run.with_name(f"{run.name}.lock"))
    refusal: list[str] | None = None
    if is_main():
        try:
            _acquire(lock, run, progress)
        except StorageError as error:
            refusal = [error.message, error.hint or ""]
    # All of them learn of it, so that none waits for a first process that has stopped.
    if (refused := broadcast_json(refusal)) is not None:
        message, hint = refused
        raise StorageError(message, hint or None)
    try:
        yield
        with suppress(OSError):  # where a file that is open cannot go (Windows), it stays
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
                    f"{run}: another process is training this model", "start again when it has ended"
                ) from None
            progress.note("recovery: another process is training this model; waiting for what it finds")
            lock.acquire(timeout=-1, poll_interval=_POLL_SECONDS)
    except OSError as error:
        raise as_storage_error(error, run) from error
