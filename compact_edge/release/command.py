"""Runs the commands `release`, `gather` and `verify --rebuild` after their arguments are parsed."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from compact.base.errors import GateError, UsageError
from compact.pruning.plan import PLAN
from compact_edge.output import check_output
from compact_edge.release.cells import Cell, Cells, PlanCell
from compact_edge.release.gather import Gathered
from compact_edge.release.rows import Row
from compact_edge.terminal.console import Console, format_table, is_interactive, one_line, print_json


def make_one(cells: Cells, cell: PlanCell | Cell, *, as_json: bool, values: Mapping[str, Any]) -> None:
    """Run `release --cell ID`. Raises GateError if the file does not fit a target, after publishing the folder."""
    from compact_edge.release.make import make_cell, make_plan

    out: Path = values["out"] or Path(cell.id)
    console = Console()
    if isinstance(cell, PlanCell):
        for option in ("plan", "with_baseline", "bench"):
            if values[option]:
                raise UsageError(f"--{option.replace('_', '-')}: {cell.id} is a plan", "leave it out")
        make_plan(cells, cell, out, console, force=values["force"])
        _print_one({"cell": cell.id, "out": str(out.absolute())}, as_json=as_json)
        return
    bench = _benches(cells, values["bench"])
    check_output(out, force=values["force"])
    with tempfile.TemporaryDirectory(prefix="compact-edge-") as scratch:
        plan = _plan_folder(values["plan"])
        if plan is None:
            plan = Path(scratch) / cell.plan.id
            make_plan(cells, cell.plan, plan, console)
        value = make_cell(
            cells,
            cell,
            plan,
            out,
            console,
            force=values["force"],
            with_baseline=values["with_baseline"],
            bench=bench,
            threads=values["threads"],
        )
    refused = {name: reason for name, reason in value["targets"].items() if reason is not None}
    measured = value["measured"].get("bench") or {}
    result = {
        "cell": cell.id,
        "out": str(out.absolute()),
        "file": value["place"],
        "size_bytes": value["artifact"]["size_bytes"],
        "status": value["measured"]["status"],
        "reason": value["measured"]["reason"],
        "targets": dict(value["targets"]),
        "bench": measured or None,
    }
    _print_one(result, as_json=as_json)
    for name, reason in refused.items():
        raise GateError(f"{cell.id}: does not fit {name}: {reason}", f"the file for the other targets is in {out}")
    if measured.get("status") == "failed":
        raise GateError(f"{cell.id}: bench: {measured['reason']}", f"the file is in {out}")


def _benches(cells: Cells, requested: bool | None) -> bool:
    """Return whether to measure. The command line takes precedence over release.toml."""
    bench = cells.release.bench is not None if requested is None else requested
    if bench and not cells.release.baseline:
        raise UsageError(
            "--bench: release.toml has baseline = false",
            "remove one of them, because the bench needs the unpruned model",
        )
    return bench


def _plan_folder(plan: Path | None) -> Path | None:
    """Return the folder of `--plan`, which may name a folder or a plan.json."""
    if plan is None:
        return None
    folder = plan if plan.is_dir() else plan.parent
    if not (folder / PLAN).is_file() or (not plan.is_dir() and plan.name != PLAN):
        raise UsageError(f"--plan {plan}: contains no {PLAN}", "give a folder from `release --cell plan-...`")
    return folder


def _print_one(result: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(dict(result))
        return
    reason = f" ({result['reason']})" if result.get("reason") else ""
    status = (
        f": {result['file']}, {result['size_bytes'] / 1e6:.1f} MB, {result['status']}{reason}"
        if "file" in result
        else ""
    )
    click.echo(f"{result['cell']}{one_line(status)}\nwrote {result['out']}")


def make_all(cells: Cells, *, as_json: bool, values: Mapping[str, Any]) -> None:
    """Run `release`. Raises GateError if a cell failed, after publishing the others."""
    from compact_edge.release.run import RunOptions, default_out, run

    bench = _benches(cells, values["bench"])
    options = RunOptions(
        out=(values["out"] or default_out(cells)).absolute(),
        jobs=values["jobs"],
        force=values["force"],
        bench=bench,
        threads=values["threads"],
    )
    gathered, reused = run(cells, options, Console())
    _print_all(gathered, reused, as_json=as_json)


def gather_all(folders: Sequence[Path], out: Path, *, force: bool, as_json: bool) -> None:
    """Run `gather`. Raises GateError if a cell is missing, after publishing the others."""
    from compact_edge.release.gather import gather, one_release, read_cells

    check_output(out, force=force, inputs=[folder for folder in folders if folder.exists()])
    records, reports = read_cells(folders)
    gathered = gather(one_release(records), records, reports, out.absolute(), force=force)
    _print_all(gathered, [], as_json=as_json)


def _print_all(gathered: Gathered, reused: Sequence[str], *, as_json: bool) -> None:
    failed = gathered.failed
    if as_json:
        cells = [asdict(row) for row in gathered.rows]
        print_json({"out": str(gathered.out), "cells": cells, "finished_before": list(reused)})
    else:
        _print_table(gathered.rows)
        click.echo(f"wrote {gathered.out}")
        if not failed:
            click.echo("next: each folder's README.md ends with the command that publishes it")
    if failed:
        what = "missing" if all(row.status == "missing" for row in failed) else "failed"
        names = list(dict.fromkeys(row.cell for row in failed))
        raise GateError(
            f"{len(failed)} of {len(gathered.rows)} {what}: {', '.join(names)}",
            "the others are published; fix the cause and run the same command again",
        )


def _print_table(rows: Sequence[Row]) -> None:
    """Print the rows as a table on a terminal, and as plain lines elsewhere."""
    import sys

    header = ("cell", "target", "status", "size", "file or reason")
    cells = [
        (
            row.cell,
            row.target,
            row.status,
            "" if row.size_bytes is None else f"{row.size_bytes / 1e6:.1f} MB",
            row.file if row.status == "complete" else f"{row.file}{': ' * bool(row.file)}{row.reason}",
        )
        for row in rows
    ]
    if not is_interactive(sys.stdout):
        click.echo(format_table(header, cells))
        return
    from rich import box
    from rich.console import Console as RichConsole
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in header:
        table.add_column(name, justify="right" if name == "size" else "left", overflow="fold")
    styles = {"failed": "red", "missing": "red", "partial": "yellow"}
    for texts in cells:
        table.add_row(*(Text(one_line(text), style=styles.get(texts[2], "")) for text in texts))
    RichConsole(highlight=False).print(table)


def rebuild(directory: Path, model: str | None, plan: Path | None, *, as_json: bool) -> None:
    """Run `verify --rebuild`.

    Raises GateError if a file differs, and ToolUnavailableError if files cannot be compared on this machine.
    """
    from compact_edge.release.rebuild import rebuild_release

    rebuild_release(directory, model, plan, Console(), as_json=as_json)
