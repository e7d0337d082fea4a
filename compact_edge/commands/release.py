"""`compact-edge release`: models x ratios x targets x types, from one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compact_edge.commands.shared import DIRECTORY, FILE


@click.command()
@click.argument("file", type=FILE)
@click.option("--out", type=DIRECTORY, help="Output directory (default: FILE without .toml; of a cell, its id).")
@click.option(
    "--jobs",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Cells to make at once, as far as the free memory goes.",
)
@click.option("--force", is_flag=True, help="Replace an earlier output.")
@click.option("--bench/--no-bench", "bench", default=None, help="Measure on this machine (default: as FILE says).")
@click.option("--threads", type=click.IntRange(1), help="Threads of a cell (default: the cores less one, shared out).")
@click.option(
    "--matrix",
    is_flag=False,
    flag_value="cells",
    type=click.Choice(["cells", "plans"]),
    help="Make nothing; print the cells (or the plans) as one line of JSON for a CI matrix.",
)
@click.option("--cell", metavar="ID", help="Make one cell, or one plan, into a folder of its own.")
@click.option(
    "--plan",
    type=click.Path(path_type=Path),
    help="With --cell: the plan's folder, or its plan.json (default: the plan is made here).",
)
@click.option(
    "--with-baseline",
    is_flag=True,
    help="With --cell: leave the unpruned file in the folder, for `compact-edge bench` on another machine.",
)
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON to stdout.")
def release(file: Path, matrix: str | None, cell: str | None, as_json: bool, **values: Any) -> None:
    """Make every model, ratio, target and type that FILE names, check each, and lay them out for the Hub.

    FILE is a release.toml; docs/release.md has every key. A cell that fails leaves the others: the table at the end
    names it, and the exit code is 3. What is finished is kept, so the same command goes on where it was ended.

    In CI, --matrix prints the jobs, --cell makes one of them, and `compact-edge gather` joins their folders.
    """
    from compact.errors import UsageError
    from compact_edge.quiet import quiet_libraries
    from compact_edge.release.cells import Cells
    from compact_edge.release.cells import matrix as matrix_of
    from compact_edge.release.manifest import read_release

    read = read_release(file)
    cells = Cells(read)
    if matrix is not None:
        import json

        click.echo(json.dumps(matrix_of(cells, matrix)))
        return
    for option in ("plan", "with_baseline"):
        if values[option] and cell is None:
            raise UsageError(f"--{option.replace('_', '-')} is for one cell", "add --cell ID; --matrix lists them")
    one = None if cell is None else cells.named(cell)
    entries = read.models if one is None else (one.entry,)
    named = [entry.opened for entry in entries]
    for entry in entries:
        named += [*entry.values.get("calibration", ()), *entry.values.get("recover_text", ())]
    quiet_libraries(*named)
    from compact_edge.release import command

    if one is not None:
        command.make_one(cells, one, as_json=as_json, values=values)
    else:
        command.make_all(cells, as_json=as_json, values=values)
