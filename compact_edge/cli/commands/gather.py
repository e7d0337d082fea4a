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
    """Join separately built cells into a release.

    A FOLDER is one of these:

    \b
    - a cell or a plan, built by `compact-edge release --cell`;
    - a report of `compact-edge bench` on one of the files;
    - a directory of such folders.

    All files are hashed again. All cells must come from the same release.toml and the same plans; others are refused.
    If cells are missing, the command names them, publishes the rest, and ends with exit code 3.
    """
    from compact_edge.release import command

    command.gather_all(folder, out, force=force, as_json=as_json)
