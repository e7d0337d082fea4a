"""`compact-edge gather`: join cells that were built separately into one release."""

from __future__ import annotations

from pathlib import Path

import click

from compact_edge.flags import DIRECTORY


@click.command()
@click.argument("folder", nargs=-1, required=True, type=DIRECTORY)
@click.option("--out", type=DIRECTORY, required=True, help="Output directory.")
@click.option("--force", is_flag=True, help="Replace an earlier output.")
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON to stdout.")
def gather(folder: tuple[Path, ...], out: Path, force: bool, as_json: bool) -> None:
    """Join cells of one release.toml into a release. `compact-edge release --cell` builds each FOLDER.

    A FOLDER may also be the folder of a plan, a report of `compact-edge bench` on one of the files, or a directory of
    such folders. All files are hashed again. Cells of another release.toml or another plan are refused. If cells are
    missing, the command names them, publishes the others, and ends with exit code 3.
    """
    from compact_edge.release import command

    command.gather_all(folder, out, force=force, as_json=as_json)
