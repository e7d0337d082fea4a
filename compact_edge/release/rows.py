"""The table at the end of a release: what became of every cell, for each of its targets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from compact_edge.release.record import Record


@dataclass(frozen=True)
class Row:
    """One line of the table at the end: a file and one target that it is for.

    Attributes:
        cell: id of the cell.
        target: name of the profile.
        status: `complete`, `partial`, `failed` or `missing`.
        file: where it lies in the release, "" where it is not there.
        size_bytes: of the artifact, None where it is not there.
        reason: of a status other than `complete`.
    """

    cell: str
    target: str
    status: str
    file: str = ""
    size_bytes: int | None = None
    reason: str = ""


def rows_of(
    description: Mapping[str, Any],
    made: Mapping[str, Record],
    places: Mapping[str, str],
    failed: Mapping[str, str],
    unmeasured: Mapping[str, str],
) -> Iterator[Row]:
    """A row for every cell and target.

    Args:
        description: of the release (`Cells.description`).
        made: the cells that are there, by id.
        places: where the file of each lies in the release.
        failed: why others are not there, by id.
        unmeasured: why the bench measured nothing, by id.
    """
    for cell in description["cells"]:
        name = str(cell["id"])
        each = made.get(name)
        for target in cell["targets"]:
            if each is None:
                status = "failed" if name in failed else "missing"
                yield Row(name, target, status, reason=failed.get(name, "its folder was not given"))
                continue
            measured, refusal = each.value["measured"], each.value["targets"].get(target)
            size = int(each.value["artifact"]["size_bytes"])
            bench = measured.get("bench") or {}
            unbenched = unmeasured.get(name) or (bench.get("reason") if bench.get("status") == "failed" else None)
            if refusal is not None:
                yield Row(name, target, "failed", places[name], size, str(refusal))
            elif unbenched is not None:
                yield Row(name, target, "failed", places[name], size, f"bench: {unbenched}")
            elif measured["status"] == "partial":
                yield Row(name, target, "partial", places[name], size, str(measured["reason"]))
            else:
                yield Row(name, target, "complete", places[name], size)
