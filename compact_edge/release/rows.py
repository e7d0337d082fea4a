"""The table at the end of a release: the status of every cell, per target."""

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
        file: path in the release; "" if the file is missing.
        size_bytes: size of the artifact; None if it is missing.
        reason: reason for a status other than `complete`.
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
    """Yield a row for every cell and target.

    Args:
        description: description of the release (`Cells.description`).
        made: finished cells by id.
        places: path of each cell's file in the release, by id.
        failed: reasons why cells failed, by id.
        unmeasured: reasons why the benchmark measured nothing, by id.
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
