"""`compact-edge gather`: cells that were made apart, joined into one release."""

from __future__ import annotations

from pathlib import Path

import click

from compact_edge.commands.shared import DIRECTORY


@click.command()
@click.argument("folder", nargs=-1, required=True, type=DIRECTORY)
@click.option("--out", type=DIRECTORY, required=True, help="Output directory.")
@click.option("--force", is_flag=True, help="Replace an earlier output.")
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON to stdout.")
def gather(folder: tuple[Path, ...], out: Path, force: bool, as_json: bool) -> None:
    """Join the cells of one release.toml, each FOLDER made by `compact-edge release --cell`, into a release.

    A FOLDER may also be a plan's, a report of `compact-edge bench` on one of the files, or a directory that holds such
    folders. Every file is hashed again. Cells of another release.toml or of another plan are refused; a cell that is
    missing is named, the others are published, and the exit code is 3.
    """
    from compact_edge.release import command

    command.gather_all(folder, out, force=force, as_json=as_json)
