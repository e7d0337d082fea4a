"""`compact-edge release`: build all models, ratios, targets and types of one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compact_edge.flags import DIRECTORY, FILE


@click.command()
@click.argument("file", type=FILE)
@click.option("--out", type=DIRECTORY, help="Output directory (default: FILE without .toml, or the id of the cell).")
@click.option(
    "--jobs",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Cells to build in parallel, if free memory allows.",
)
@click.option("--force", is_flag=True, help="Replace an earlier output.")
@click.option(
    "--bench/--no-bench", "bench", default=None, help="Measure on this machine (default: the setting in FILE)."
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    help="Threads per cell (default: the cores minus one, divided among the cells).",
)
@click.option(
    "--matrix",
    is_flag=False,
    flag_value="cells",
    type=click.Choice(["cells", "plans"]),
    help="Build nothing; print the cells (or the plans) as one line of JSON for a CI matrix.",
)
@click.option("--cell", metavar="ID", help="Build one cell or one plan into its own folder.")
@click.option(
    "--plan",
    type=click.Path(path_type=Path),
    help="With --cell: folder of the plan, or its plan.json (default: make the plan here).",
)
@click.option(
    "--with-baseline",
    is_flag=True,
    help="With --cell: keep the unpruned file in the folder, for `compact-edge bench` on another machine.",
)
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON to stdout.")
def release(file: Path, matrix: str | None, cell: str | None, as_json: bool, **values: Any) -> None:
    """Build and check every model, ratio, target and type in FILE, and arrange the files for the Hub.

    FILE is a release.toml; docs/release.md describes its keys. If a cell fails, the others are still built. The table
    at the end names the failed cell, and the exit code is 3. Finished cells are kept, so the same command resumes
    where it stopped.

    In CI, --matrix prints the jobs, --cell builds one of them, and `compact-edge gather` joins their folders.
    """
    from compact.base.errors import UsageError
    from compact_edge.cli.library_env import quiet_libraries
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
            raise UsageError(
                f"--{option.replace('_', '-')} is only for one cell", "add --cell ID; --matrix lists the ids"
            )
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
