"""Where a command may write: refused before any work is done, and never over something that is not ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compact.base.errors import OutputExistsError, StorageError, UsageError
from compact.base.files import SUMS
from exporters.registry import names

_BASELINE = "baseline"


def existing(*named: str | Path | None) -> list[Path]:
    """Those of the named inputs that are files or directories; a built-in's name is none."""
    return [path for value in named if value is not None and (path := Path(value)).exists()]


def check_output(out: Path, *, force: bool, inputs: Sequence[Path] = ()) -> None:
    """Check an output directory.

    Args:
        out: the directory to make.
        force: an earlier output may be replaced. Only an empty directory, one with our checksums, or one with
            nothing but a build's folders counts as that: `--out ~ --force` must not cost anybody a home directory, nor
            a project the folder that it keeps its reports and builds in.
        inputs: what the command reads; none of it may lie in a directory that is replaced.

    Raises:
        OutputExistsError: something is there that may not be replaced.
        UsageError: an input lies in `out`.
    """
    resolved = out.resolve()
    for path in inputs:
        if resolved == path.resolve() or resolved in path.resolve().parents:
            raise UsageError(f"{out}: the command reads {path.name} from there", "name another --out")
    if not out.exists():
        return
    if not force:
        raise OutputExistsError(f"{out}: exists already", "give --force to replace it, or another --out")
    if not out.is_dir():
        raise OutputExistsError(f"{out}: exists already and is no directory", "remove it, or name another --out")
    if not _is_output(out):
        raise OutputExistsError(
            f"{out}: is no earlier output, and --force does not replace it",
            "remove it yourself, or name another --out",
        )


def check_new_file(path: Path, option: str) -> None:
    """Check a file that a command writes beside its result.

    Raises:
        OutputExistsError: it is there already.
        StorageError: its folder is not.
    """
    if path.exists():
        raise OutputExistsError(f"{path} is there already", "choose another name, or remove it")
    if not path.absolute().parent.is_dir():
        raise StorageError(f"{option} {path}: no such folder to write into", "make it, or choose another name")


def _is_output(out: Path) -> bool:
    if (out / SUMS).is_file():
        return True
    # What a build publishes, each with checksums of its own, and nothing beside them.
    folders = {_BASELINE, *names(), *(f"{_BASELINE}-{name}" for name in names())}
    return all(entry.name in folders and (entry / SUMS).is_file() for entry in out.iterdir())
