"""Check output paths before any work starts. Commands never overwrite files that are not their own output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compact.base.errors import OutputExistsError, StorageError, UsageError
from compact.base.files import SUMS
from exporters.registry import names

_BASELINE = "baseline"


def existing(*named: str | Path | None) -> list[Path]:
    """Return the named inputs that are files or directories. A name of a built-in model is neither."""
    return [path for value in named if value is not None and (path := Path(value)).exists()]


def check_output(out: Path, *, force: bool, inputs: Sequence[Path] = ()) -> None:
    """Check an output directory.

    Args:
        out: the directory to make.
        force: replace an earlier output. An earlier output is an empty directory, a directory with our checksums, or
            one that contains only the folders of a build. Anything else is kept: `--out ~ --force` must not delete a
            home directory, nor a project folder with reports and builds.
        inputs: files and directories that the command reads. None of them may be in `out`.

    Raises:
        OutputExistsError: `out` exists and may not be replaced.
        UsageError: an input is in `out`.
    """
    resolved = out.resolve()
    for path in inputs:
        if resolved == path.resolve() or resolved in path.resolve().parents:
            raise UsageError(f"{out}: contains {path.name}, which the command reads", "give another --out")
    if not out.exists():
        return
    if not force:
        raise OutputExistsError(f"{out}: already exists", "give --force to replace it, or another --out")
    if not out.is_dir():
        raise OutputExistsError(f"{out}: already exists and is not a directory", "remove it, or give another --out")
    if not _is_output(out):
        raise OutputExistsError(
            f"{out}: is not an earlier output, so --force does not replace it",
            "remove it yourself, or give another --out",
        )


def check_new_file(path: Path, option: str) -> None:
    """Check the path of an additional file that a command writes.

    Raises:
        OutputExistsError: the file already exists.
        StorageError: its folder does not exist.
    """
    if path.exists():
        raise OutputExistsError(f"{path}: already exists", "choose another name, or remove it")
    if not path.absolute().parent.is_dir():
        raise StorageError(f"{option} {path}: its folder does not exist", "create it, or choose another name")


def _is_output(out: Path) -> bool:
    if (out / SUMS).is_file():
        return True
    # The folders that a build publishes, each with its own checksums, and nothing else.
    folders = {_BASELINE, *names(), *(f"{_BASELINE}-{name}" for name in names())}
    return all(entry.name in folders and (entry / SUMS).is_file() for entry in out.iterdir())
