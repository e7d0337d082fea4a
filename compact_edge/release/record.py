"""Reads the folder of a finished cell: `cell.json` describes the cell, and SHA256SUMS shows that it is complete."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compact.base.errors import CompactEdgeError, DamagedFileError
from compact.base.files import SUMS, check_sums, read_json_object, read_sums, safe_child, sha256_json

CELL = "cell.json"
SCHEMA = "compact-edge/release-cell/1"
PLAN, ARTIFACT = "plan", "artifact"
IMATRIX = "imatrix.gguf"
REPORT = "report"
_TEXT_OR_NONE = (str, type(None))
_SIZES = {"before": int, "after": int}
# Required keys of cell.json: key -> type, types, or the shape of its object. Keys that are not read are omitted.
_SHAPES: Mapping[str, Mapping[str, Any]] = {
    PLAN: {"id": str, "release": dict, "plan": {"cell": str, "id": str, "sha256": str}},
    ARTIFACT: {
        "id": str,
        "tool": dict,
        "release": {"owner": _TEXT_OR_NONE, "targets": dict, "cells": list},
        "plan": {"cell": str, "id": str, "sha256": str, "updates_sha256": _TEXT_OR_NONE},
        "repository": str,
        "title": str,
        "place": str,
        "files": dict,
        "artifact": {
            "quant": str,
            "embedding_type": str,
            "bits_per_weight": (int, float),
            "size_bytes": int,
            "recipe": dict,
            "made_with": dict,
        },
        "targets": dict,
        "measured": {
            "status": str,
            "reason": _TEXT_OR_NONE,
            "bits_per_byte": dict,
            "evaluation": {"text": str},
            "parity": (dict, type(None)),
        },
        "card": {
            "matter": dict,
            "licence": _TEXT_OR_NONE,
            "notes": list,
            "use": {"language": str, "lines": list},
            "model": {
                "name": str,
                "hub": _TEXT_OR_NONE,
                "source_id": str,
                "method": str,
                "ranking": str,
                "calibration": (dict, type(None)),
                "parameters": _SIZES,
                "vocab_size": _SIZES,
                "intermediate_size": _SIZES,
            },
        },
    },
}


@dataclass(frozen=True)
class Record:
    """A finished cell whose files were hashed.

    Attributes:
        folder: folder of the cell.
        value: content of its `cell.json`.
        sums: sha256 of every file, by name in the folder.
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
        """sha256 of the description of the release."""
        return sha256_json(self.value["release"])

    @property
    def plan(self) -> Mapping[str, Any]:
        """`cell`, `id`, and the sha256 of `plan.json`, of the importance matrix and of the updates."""
        plan: Mapping[str, Any] = self.value["plan"]
        return plan

    def source_of(self, name: str) -> tuple[Path, str]:
        """Return (path, sha256) of the file that the release contains as `name`.

        Raises UnsafePathError, and DamagedFileError if SHA256SUMS lists a different file.
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
        """The folder of the benchmark report; None if nothing was measured."""
        path = self.folder / REPORT
        return path if path.is_dir() else None


def read_record(folder: Path) -> Record:
    """Read the folder of a cell and hash all its files.

    Raises:
        DamagedFileError: the folder is not a cell, is incomplete, or has another schema.
        UnsafePathError, StorageError: a file cannot be read safely.
    """
    path = folder / CELL
    if not path.is_file():
        raise DamagedFileError(f"{folder}: contains no {CELL}", "give a folder from `compact-edge release --cell`")
    value = read_json_object(path)
    if value.get("schema") != SCHEMA:
        raise DamagedFileError(
            f"{path}: schema is {str(value.get('schema'))[:60]!r}, expected {SCHEMA!r}",
            "make the cell again with this version of compact-edge",
        )
    shape = _SHAPES.get(str(value.get("kind")))
    if shape is None:
        raise DamagedFileError(
            f"{path}: kind must be {PLAN} or {ARTIFACT}", "make the cell again with this version of compact-edge"
        )
    wrong = _first_wrong(value, shape)
    if wrong is not None:
        raise DamagedFileError(f"{path}: {wrong} is missing or has the wrong type", "make the cell again")
    sums = read_sums(folder)
    if CELL not in sums:
        raise DamagedFileError(f"{path}: not listed in {SUMS}", "make the cell again")
    check_sums(folder, sums, "make the cell again")
    return Record(folder, value, sums)


def _first_wrong(value: Mapping[str, Any], shape: Mapping[str, Any]) -> str | None:
    """Return the dotted path of the first key that does not match `shape`; None if all match."""
    for key, kind in shape.items():
        found = value.get(key)
        if isinstance(kind, dict):
            if not isinstance(found, dict):
                return key
            if (inner := _first_wrong(found, kind)) is not None:
                return f"{key}.{inner}"
        elif not isinstance(found, kind):
            return key
    return None


def finished(folder: Path) -> Record | None:
    """Return the cell in a folder; None if it is missing or incomplete."""
    try:
        return read_record(folder)
    except (CompactEdgeError, OSError):
        return None
