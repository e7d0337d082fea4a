"""The one place that turns an exception into an exit code, a line that says what is wrong, and a next step."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass

import click

from compact.distributed import PeerFailedError, launched_rank
from compact.errors import EXIT_IO, EXIT_UNAVAILABLE, EXIT_USAGE, CompactEdgeError

EXIT_BUG = 1
EXIT_INTERRUPTED = 130
# What a shell reports for a program that SIGPIPE ended: `compact-edge targets | head -1` is no failure of ours.
EXIT_BROKEN_PIPE = 141

_IO_HINTS: Mapping[int, str] = {
    errno.ENOSPC: "free some space, or choose an output directory on another disk",
    errno.EDQUOT: "free some of your quota, or choose an output directory on another disk",
    errno.EACCES: "check who may read and write there, or choose another place",
    errno.EPERM: "check who may read and write there, or choose another place",
    errno.EROFS: "choose an output directory on a disk that can be written",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path: a part of it is a file",
    errno.EISDIR: "name a file, not a directory",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EIO: "the disk reported an error; check it before you try again",
}


class Terminated(BaseException):
    """A signal asked the process to end; raised so that every `finally` runs and no half-written file stays.

    Not an `Exception`, so that no handler for failures of the work takes it for one.
    """

    def __init__(self, signal_number: int, signal_name: str) -> None:
        super().__init__(f"stopped by {signal_name}")
        self.exit_code = 128 + signal_number


@dataclass(frozen=True)
class Failure:
    """What the user sees of an exception; without a message nothing is printed."""

    exit_code: int
    message: str | None = None
    hint: str | None = None


def describe(error: BaseException) -> Failure:
    """Return what to tell the user about `error` and the exit code to end with."""
    if isinstance(error, PeerFailedError):
        return Failure(error.exit_code)
    if isinstance(error, CompactEdgeError):
        return Failure(error.exit_code, error.message, error.hint)
    if isinstance(error, click.ClickException):
        if launched_rank() > 0:  # every process of the job reads the same line, and one says what is wrong with it
            return Failure(EXIT_USAGE)
        return _describe_click(error)
    if isinstance(error, click.Abort | KeyboardInterrupt | EOFError):
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
    # Libraries also raise a bare OSError without an errno for a bug or a bad file; that is no failure of the disk.
    if isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError):
        return _describe_os(error)
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return Failure(EXIT_BUG, f"internal error: {text}", "run again with --debug and report the traceback")


def _describe_click(error: click.ClickException) -> Failure:
    possibilities = getattr(error, "possibilities", None)
    # format_message names the option that a bad value was for, but also repeats the suggestion, which is our hint.
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
    # By name and text: torch need not be there, and takes seconds to import. Its allocators of CUDA and XPU raise a
    # class of their own; a failed call of CUDA itself, and the allocator of MPS, have only a text.
    if any(
        kind.__name__ == "OutOfMemoryError" and kind.__module__.partition(".")[0] == "torch"
        for kind in type(error).__mro__
    ):
        return True
    texts = ("MPS backend out of memory", "CUDA error: out of memory")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
