"""The folder of a finished cell: `cell.json` says what it is, SHA256SUMS that it is whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compact.errors import CompactEdgeError, DamagedFileError
from compact.store import SUMS, read_json_object, read_sums, safe_child, sha256_file, sha256_json

CELL = "cell.json"
SCHEMA = "compact-edge/release-cell/1"
PLAN, ARTIFACT = "plan", "artifact"
IMATRIX = "imatrix.gguf"
REPORT = "report"
_KINDS: Mapping[str, Mapping[str, type]] = {
    PLAN: {"id": str, "release": dict, "plan": dict},
    ARTIFACT: {
        "id": str,
        "release": dict,
        "plan": dict,
        "repository": str,
        "title": str,
        "place": str,
        "files": dict,
        "artifact": dict,
        "targets": dict,
        "measured": dict,
        "card": dict,
    },
}


@dataclass(frozen=True)
class Record:
    """A finished cell whose files were hashed.

    Attributes:
        folder: where it lies.
        value: its `cell.json`.
        sums: sha256 of every file by its name in the folder.
    """

    folder: Path
    value: Mapping[str, Any]
    sums: Mapping[str, str]

    @property
    def id(self) -> str:
        return str(self.value["id"])

    @property
    def is_plan(self) -> bool:
        return bool(self.value["kind"] == PLAN)

    @property
    def digest(self) -> str:
        """sha256 of the description of its release."""
        return sha256_json(self.value["release"])

    @property
    def plan(self) -> Mapping[str, Any]:
        """`cell`, `id`, and the sha256 of `plan.json`, of the importance matrix and of the updates."""
        plan: Mapping[str, Any] = self.value["plan"]
        return plan

    def source_of(self, name: str) -> tuple[Path, str]:
        """(path, sha256) of a file that goes into the release as `name`.

        Raises UnsafePathError, and DamagedFileError where SHA256SUMS lists another file.
        """
        entry = self.value["files"][name]
        where = str(self.folder / CELL)
        place = entry.get("from") if isinstance(entry, dict) else None
        if not isinstance(place, str) or not place or self.sums.get(place) != entry.get("sha256"):
            raise DamagedFileError(f"{where}: {name!r} is not the file that {SUMS} lists", "make the cell again")
        path = self.folder
        for part in place.split("/"):
            path = safe_child(path, part, where)
        return path, str(entry["sha256"])

    @property
    def report(self) -> Path | None:
        """The folder of the bench's report, None where nothing was measured."""
        path = self.folder / REPORT
        return path if path.is_dir() else None


def read_record(folder: Path) -> Record:
    """Read a cell's folder and hash every file of it.

    Raises:
        DamagedFileError: no cell, one that is not whole, or one of another schema.
        UnsafePathError, StorageError.
    """
    path = folder / CELL
    if not path.is_file():
        raise DamagedFileError(f"{folder}: no {CELL} in it", "name a folder that `compact-edge release --cell` made")
    value = read_json_object(path)
    if value.get("schema") != SCHEMA:
        raise DamagedFileError(f"{path}: schema {str(value.get('schema'))[:60]!r}, {SCHEMA!r} was expected")
    shape = _KINDS.get(str(value.get("kind")))
    if shape is None:
        raise DamagedFileError(f"{path}: kind must be {PLAN} or {ARTIFACT}")
    for key, kind in shape.items():
        if not isinstance(value.get(key), kind):
            raise DamagedFileError(f"{path}: {key} is missing, or of the wrong type")
    sums = read_sums(folder)
    if CELL not in sums:
        raise DamagedFileError(f"{path}: not listed in {SUMS}", "make the cell again")
    for name, digest in sums.items():
        if not (folder / name).is_file():
            raise DamagedFileError(f"{folder / name}: missing, but listed in {SUMS}", "make the cell again")
        if sha256_file(folder / name) != digest:
            raise DamagedFileError(f"{folder / name}: damaged, its sha256 differs", "make the cell again")
    return Record(folder, value, sums)


def finished(folder: Path) -> Record | None:
    """The cell in a folder where it is whole, None else."""
    try:
        return read_record(folder)
    except (CompactEdgeError, OSError):
        return None
