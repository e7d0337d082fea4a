"""Joins cells into a release, with one folder per model, ratio and format. Files are hashed while they are copied.

`manifest.json` lists only the files of the model, so it does not depend on the machine that made the cells.
Measurements are in README.md, measured.json and reports/. They affect SHA256SUMS, but not the manifest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compact.base.errors import DamagedFileError, DataError, PlanMismatchError
from compact.base.files import (
    SUMS,
    copy_hashed,
    publish,
    read_sums,
    safe_child,
    sha256_file,
    sha256_json,
    write_json,
    write_sums,
    write_text,
)
from compact_edge.release.card import Entry, Report, RepositoryCard, device_name, render_card
from compact_edge.release.cells import SCHEMA
from compact_edge.release.record import CELL, Record, read_record
from compact_edge.release.rows import Row, rows_of
from compact_edge.release.verify import MANIFEST
from compact_edge.version import __version__
from exporters.base import Format
from exporters.registry import format_named, names

MEASURED = "measured.json"
REPORTS = "reports"
_REPORT = "report.json"
_REPORT_FILES = ("report.json", "report.md", "report.html", "samples.jsonl", "facts.json")


@dataclass(frozen=True)
class Gathered:
    """A published release: its directory, and a row for every cell and target."""

    out: Path
    rows: tuple[Row, ...]

    @property
    def failed(self) -> list[Row]:
        return [row for row in self.rows if row.status in ("failed", "missing")]


def read_cells(folders: Sequence[Path]) -> tuple[list[Record], list[Path]]:
    """Read the cells and benchmark reports in folders, or one level below them.

    Raises:
        DataError: a folder contains neither cells nor reports.
        DamagedFileError, UnsafePathError: a cell is damaged.
    """
    records: list[Record] = []
    reports: list[Path] = []
    for folder in folders:
        found = 0
        for place in (folder, *(sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else ())):
            if (place / CELL).is_file():
                records.append(read_record(place))
            elif (place / _REPORT).is_file() and (place / SUMS).is_file():
                reports.append(place)
            else:
                continue
            found += 1
            if place == folder:
                break
        if not found:
            raise DataError(
                f"{folder}: contains no cell and no report", "give folders from `compact-edge release --cell`"
            )
    return records, reports


def one_release(records: Sequence[Record]) -> Mapping[str, Any]:
    """Return the description of the release that all cells belong to.

    Raises:
        DataError: there are no cells, a cell occurs twice, or the cells belong to several releases.
        PlanMismatchError: cells of one model and ratio have different plans.
    """
    if all(each.is_plan for each in records):
        raise DataError("no cell to gather", "give folders from `compact-edge release --cell`")
    first = records[0]
    seen: dict[str, Record] = {}
    plans: dict[str, Record] = {}
    for each in records:
        if each.digest != first.digest:
            raise DataError(
                f"{each.folder}: was made with a different release.toml than {first.folder}",
                "make all cells with the same release.toml, texts and profiles",
            )
        other = seen.setdefault(each.id, each)
        if other is not each:
            raise DataError(f"{each.folder}: has the same cell {each.id} as {other.folder}", "give each cell once")
        known = plans.setdefault(str(each.plan.get("cell")), each)
        if known.plan.get("sha256") != each.plan.get("sha256"):
            raise PlanMismatchError(
                f"{each.folder}: uses a different plan than {known.folder}",
                "make the plan once and give its folder to all its cells: --plan DIR",
            )
    description: Mapping[str, Any] = first.value["release"]
    for cell in description["cells"]:
        texts = (cell.get("id"), *(cell.get("targets") or ())) if isinstance(cell, dict) else (None,)
        if not all(isinstance(text, str) for text in texts):
            raise DamagedFileError(
                f"{first.folder / CELL}: release.cells is not a list of cells", "make the cell again"
            )
    for profile in description["targets"].values():
        if not isinstance(profile, dict) or not isinstance(profile.get("description"), str):
            raise DamagedFileError(f"{first.folder / CELL}: release.targets are not profiles", "make the cell again")
    return description


def gather(
    description: Mapping[str, Any],
    records: Sequence[Record],
    reports: Sequence[Path],
    out: Path,
    *,
    force: bool = False,
    failed: Mapping[str, str] | None = None,
    unmeasured: Mapping[str, str] | None = None,
) -> Gathered:
    """Publish a release.

    Args:
        description: description of the release (`Cells.description`).
        records: finished cells. Plan cells are only compared with the plans of the others.
        reports: additional benchmark reports on files of these cells.
        out: the directory to publish.
        force: replace an earlier output.
        failed: reasons why cells are missing, by id.
        unmeasured: reasons why the benchmark measured nothing, by id.

    Raises:
        DamagedFileError: a file changed after its cell was read, or two cells have different files of the same name.
        DataError: a report measured none of the files.
        OutputExistsError, StorageError: the output cannot be written.
    """
    made = {each.id: each for each in records if not each.is_plan}
    order = [str(cell["id"]) for cell in description["cells"]]
    unknown = sorted(made.keys() - set(order))
    if unknown:
        raise DamagedFileError(
            f"{made[unknown[0]].folder}: {unknown[0]} is not a cell of its release", "make the cell again"
        )
    folders: dict[str, list[Record]] = {}
    for each in (made[cell] for cell in order if cell in made):
        folders.setdefault(str(each.value["repository"]), []).append(each)
    reports_by_cell = _attached(reports, made.values())
    places: dict[str, str] = {}
    needed = sum(path.stat().st_size for each in made.values() for path, _ in _sources(each).values())
    with publish(out, force=force, needed_bytes=needed) as work:
        manifests: dict[str, str] = {}
        sums: dict[str, str] = {}
        for name, members in folders.items():
            folder = safe_child(work, name, str(members[0].folder / CELL))
            folder.mkdir()
            repository = _Repository(folder, members, description, reports_by_cell)
            places.update({cell: f"{name}/{place}" for cell, place in repository.write().items()})
            manifests[name] = sha256_file(folder / MANIFEST)
            sums.update({f"{name}/{file}": digest for file, digest in write_sums(folder).items()})
        missing = [cell for cell in order if cell not in made]
        write_json(
            work / MANIFEST,
            {
                "schema": SCHEMA,
                "tool": {"name": "compact-edge", "version": __version__},
                "release": dict(description),
                "repositories": manifests,
                "missing": missing,
            },
        )
        # The files in the folders have already been hashed by `write_sums`.
        sums[MANIFEST] = sha256_file(work / MANIFEST)
        write_text(work / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())))
    return Gathered(out, tuple(rows_of(description, made, places, failed or {}, unmeasured or {})))


def _sources(each: Record) -> dict[str, tuple[Path, str]]:
    return {name: each.source_of(name) for name in each.value["files"]}


def _attached(reports: Sequence[Path], records: Iterable[Record]) -> dict[str, list[Path]]:
    """Return the reports by id of the measured cell: those in the cells' folders, and others matched by sha256."""
    from runtime_bench.bench_artifact import read_artifact
    from runtime_bench.report.read import read_document

    found: dict[str, list[Path]] = {}
    by_sha256: dict[str, str] = {}
    for each in records:
        if each.report is not None:
            found.setdefault(each.id, []).append(each.report)
        if reports:
            made = _format_of(str(each.value["repository"]))
            if made.suffix:
                path, _ = each.source_of(str(each.value["place"]))
                by_sha256[sha256_file(path)] = each.id
            else:
                by_sha256[read_artifact(each.folder / made.name).sha256] = each.id
    for folder in reports:
        subject = read_document(folder)["subjects"]["pruned"]
        cell = by_sha256.get(str(subject["sha256"]))
        if cell is None:
            raise DataError(f"{folder}: the report measured none of the files", "also give the cell that it measured")
        found.setdefault(cell, []).append(folder)
    return found


def _format_of(repository: str) -> type[Format]:
    """Return the format at the end of a release folder's name. Raises DamagedFileError if there is none."""
    name = repository.rpartition("-")[2].lower()
    if name not in names():
        raise DamagedFileError(f"{repository[:80]!r} does not end in a known format", "make the cell again")
    return format_named(name)


class _Repository:
    """Writes one folder of a release."""

    def __init__(
        self,
        folder: Path,
        members: Sequence[Record],
        description: Mapping[str, Any],
        reports: Mapping[str, Sequence[Path]],
    ) -> None:
        self._folder = folder
        self._members = members
        self._description = description
        self._reports = reports
        self._files: dict[str, str] = {}
        self._format = _format_of(folder.name)

    def write(self) -> dict[str, str]:
        """Write everything except SHA256SUMS. Return cell id -> name of its file."""
        kept: dict[str, Record] = {}
        places: dict[str, str] = {}
        targets: dict[str, dict[str, str | None]] = {}
        contents: dict[tuple[tuple[str, str], ...], str] = {}
        for each in self._members:
            place = str(each.value["place"])
            own, shared = self._split(each, place)
            # Recipes that result in identical bytes share one file.
            content = tuple(sorted((name.removeprefix(place), digest) for name, digest in own.items()))
            first = contents.setdefault(content, place)
            self._copy(each, shared if first != place else [*own, *shared])
            places[each.id] = first
            kept.setdefault(first, each)
            targets.setdefault(first, {}).update(each.value["targets"])
        write_json(self._folder / MANIFEST, self._manifest(kept, places))
        reports = list(self._copied_reports(places))
        write_json(
            self._folder / MEASURED,
            {
                place: {**each.value["measured"], "reports": [r.folder for r in reports if r.place == place]}
                for place, each in kept.items()
            },
        )
        entries = [
            Entry(
                place=place,
                artifact=each.value["artifact"],
                targets=targets[place],
                measured=each.value["measured"],
                notes=each.value["card"]["notes"],
                use=each.value["card"]["use"],
            )
            for place, each in kept.items()
        ]
        card = self._members[0].value["card"]
        write_text(
            self._folder / "README.md",
            render_card(
                RepositoryCard(
                    name=self._folder.name,
                    folders=not self._format.suffix,
                    matter=card["matter"],
                    licence=card["licence"],
                    model=card["model"],
                    plan_id=str(self._members[0].plan["id"]),
                    profiles=self._description["targets"],
                    entries=entries,
                    reports=reports,
                    owner=self._description["owner"],
                )
            ),
        )
        return places

    def _split(self, each: Record, place: str) -> tuple[dict[str, str], list[str]]:
        """Return a cell's own files (name -> sha256), and the names of files that all cells of its plan share."""
        own = {n: str(f["sha256"]) for n, f in each.value["files"].items() if n == place or n.startswith(f"{place}/")}
        return own, [name for name in each.value["files"] if name not in own]

    def _copy(self, each: Record, names: Sequence[str]) -> None:
        for name in names:
            path, digest = each.source_of(name)
            if name in self._files:
                if self._files[name] != digest:
                    raise DamagedFileError(
                        f"{each.folder}: {name} differs from that of another cell",
                        "use one plan folder for all its cells, and one kind of machine for all cells of a type",
                    )
                continue
            target = self._folder
            for part in name.split("/"):
                target.mkdir(exist_ok=True)
                target = safe_child(target, part, str(each.folder / CELL))
            if copy_hashed(path, target) != digest:
                raise DamagedFileError(f"{path}: changed after its cell was read", "make the cell again")
            self._files[name] = digest

    def _manifest(self, kept: Mapping[str, Record], places: Mapping[str, str]) -> dict[str, Any]:
        first = self._members[0]
        plan = {key: first.plan[key] for key in ("cell", "id", "sha256", "updates_sha256")}
        return {
            "schema": SCHEMA,
            "tool": first.value["tool"],
            "name": self._folder.name,
            "title": first.value["title"],
            "format": self._format.name,
            "model": first.value["card"]["model"],
            "release": sha256_json(self._description),
            "plan": plan,
            "artifacts": [
                {
                    "place": place,
                    "cells": [cell for cell, own in places.items() if own == place],
                    "targets": sorted(
                        {name for m in self._members if places[m.id] == place for name in m.value["targets"]}
                    ),
                    **each.value["artifact"],
                    "files": self._split(each, place)[0],
                }
                for place, each in kept.items()
            ],
            "files": dict(sorted(self._files.items())),
        }

    def _copied_reports(self, places: Mapping[str, str]) -> Iterable[Report]:
        from runtime_bench.report.read import read_document

        for cell, place in places.items():
            for source in self._reports.get(cell, ()):
                document = read_document(source)
                device = re.sub(r"[^a-z0-9]+", "-", device_name(document).lower()).strip("-")[:60] or "device"
                base = f"{REPORTS}/{place.removesuffix(self._format.suffix)}/{device}"
                number = 1
                name = base
                while (self._folder / name).exists():
                    number += 1
                    name = f"{base}-{number}"
                target = self._folder / name
                target.mkdir(parents=True)
                listed = read_sums(source)
                for file in _REPORT_FILES:
                    if file in listed and copy_hashed(source / file, target / file) != listed[file]:
                        raise DamagedFileError(
                            f"{source / file}: damaged, its sha256 differs from that in {SUMS}", "measure again"
                        )
                yield Report(place, name, document)
