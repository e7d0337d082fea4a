"""Converts exceptions to exit codes, one-line messages and next steps. No other module does this."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass

import click

from compact.base.distributed import PeerFailedError, launched_rank
from compact.base.errors import EXIT_IO, EXIT_UNAVAILABLE, EXIT_USAGE, CompactEdgeError

EXIT_BUG = 1
EXIT_INTERRUPTED = 130
# Shells report this for a program that SIGPIPE ended. `compact-edge targets | head -1` is not a failure.
EXIT_BROKEN_PIPE = 141

_IO_HINTS: Mapping[int, str] = {
    errno.ENOSPC: "free some space, or choose an output directory on another disk",
    errno.EDQUOT: "free some of your quota, or choose an output directory on another disk",
    errno.EACCES: "check the permissions, or choose another place",
    errno.EPERM: "check the permissions, or choose another place",
    errno.EROFS: "choose an output directory on a writable disk",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path: a part of it is a file",
    errno.EISDIR: "give a file, not a directory",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EIO: "the disk reported an error; check it before you try again",
}


class Terminated(BaseException):
    """Raised when a signal asks the process to end, so that every `finally` runs and removes partial files.

    It is not an `Exception`, so that handlers for other failures do not catch it.
    """

    def __init__(self, signal_number: int, signal_name: str) -> None:
        super().__init__(f"stopped by {signal_name}")
        self.exit_code = 128 + signal_number


@dataclass(frozen=True)
class Failure:
    """Exit code, message and next step for an exception. Without a message, nothing is printed."""

    exit_code: int
    message: str | None = None
    hint: str | None = None


def describe(error: BaseException) -> Failure:
    """Return exit code, message and next step for `error`."""
    if isinstance(error, PeerFailedError):
        return Failure(error.exit_code)
    if isinstance(error, CompactEdgeError):
        return Failure(error.exit_code, error.message, error.hint)
    if isinstance(error, click.ClickException):
        if launched_rank() > 0:  # all processes of the job get the same arguments, so only one reports the error
            return Failure(EXIT_USAGE)
        return _describe_click(error)
    # click turns an EOFError into Abort, as if a prompt had been cancelled. No command asks anything: it is a bug.
    if isinstance(error, click.Abort) and isinstance(error.__cause__, EOFError):
        error = error.__cause__
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return Failure(EXIT_INTERRUPTED, "interrupted")
    if isinstance(error, Terminated):
        return Failure(error.exit_code, str(error))
    if isinstance(error, BrokenPipeError):
        return Failure(EXIT_BROKEN_PIPE)
    if isinstance(error, ModuleNotFoundError) and error.name:
        return _describe_missing(error, error.name)
    if _out_of_memory(error):
        return Failure(EXIT_UNAVAILABLE, "not enough memory", "close other programs, or use a smaller model")
    if _out_of_device_memory(error):
        return Failure(
            EXIT_UNAVAILABLE, "not enough memory on the accelerator", "lower --batch-size, or run with --device cpu"
        )
    # Libraries also raise a plain OSError without errno for bugs and bad files. Those are not disk errors.
    if isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError):
        return _describe_os(error)
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return Failure(EXIT_BUG, f"internal error: {text}", "run again with --debug and report the traceback")


def _describe_click(error: click.ClickException) -> Failure:
    possibilities = getattr(error, "possibilities", None)
    # format_message names the option with the bad value. It also includes the suggestion, which is in our hint.
    message = (error.message if possibilities else error.format_message()).strip().rstrip(".")
    message = message[:1].lower() + message[1:]
    if isinstance(error, click.FileError):
        return Failure(EXIT_IO, message)
    hint = None
    if possibilities:
        hint = "did you mean " + " or ".join(sorted(possibilities)) + "?"
    elif isinstance(error, click.UsageError) and error.ctx is not None:
        hint = f"see {error.ctx.command_path} --help"
    return Failure(EXIT_USAGE, message, hint)


def _describe_missing(error: ModuleNotFoundError, module: str) -> Failure:
    from compact_edge.packages import install_hint, package_of

    package = package_of(module)
    if package is None:
        return Failure(EXIT_BUG, f"internal error: {error}", "run again with --debug and report the traceback")
    return Failure(
        EXIT_UNAVAILABLE, f"the package {package.distribution} is not installed", install_hint(package.extra)
    )


def _describe_os(error: OSError) -> Failure:
    reason = error.strerror or str(error) or type(error).__name__
    reason = reason[:1].lower() + reason[1:]
    place = f"{error.filename}: " if error.filename is not None else ""
    hint = _IO_HINTS.get(error.errno) if error.errno is not None else None
    return Failure(EXIT_IO, place + reason, hint or "check the path and the disk, then run again")


def _out_of_memory(error: BaseException) -> bool:
    # torch's CPU allocator reports a failed allocation as a plain RuntimeError with this text.
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
    )


def _out_of_device_memory(error: BaseException) -> bool:
    # Compare names and texts, because torch may be missing and takes seconds to import. Its CUDA and XPU allocators
    # raise OutOfMemoryError. The MPS allocator and failed CUDA calls raise RuntimeError with a known text.
    if any(
        kind.__name__ == "OutOfMemoryError" and kind.__module__.partition(".")[0] == "torch"
        for kind in type(error).__mro__
    ):
        return True
    texts = ("MPS backend out of memory", "CUDA error: out of memory")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
