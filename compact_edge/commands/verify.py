"""`compact-edge verify`: re-hash what was published."""

from __future__ import annotations

from pathlib import Path

import click

from compact_edge.commands.shared import DIRECTORY


@click.command()
@click.argument("directory", type=DIRECTORY)
@click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout.")
def verify(directory: Path, as_json: bool) -> None:
    """Re-hash every file of a published DIRECTORY against its SHA256SUMS."""
    from compact.errors import DamagedFileError, ModelNotFoundError
    from compact.store import SUMS, read_sums, sha256_file
    from compact_edge.console import print_json

    if not directory.is_dir():
        raise ModelNotFoundError(f"{directory}: no such directory", "name the --out of a build")
    folders = sorted(path.parent for path in directory.rglob(SUMS))
    if not folders:
        raise DamagedFileError(f"{directory}: no {SUMS} in it", "name the --out of a build")
    checked: dict[str, str] = {}
    for folder in folders:
        sums = read_sums(folder)
        present = {
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name != SUMS
        }
        for name in sorted(present - sums.keys()):
            raise DamagedFileError(f"{folder / name}: not listed in {SUMS}", "a file was added after publication")
        for name, digest in sums.items():
            if name not in present:
                raise DamagedFileError(f"{folder / name}: missing, but listed in {SUMS}", "build or download it again")
            if sha256_file(folder / name) != digest:
                raise DamagedFileError(f"{folder / name}: damaged, its sha256 differs", "build or download it again")
            checked[(folder / name).relative_to(directory).as_posix()] = digest
    if as_json:
        print_json({"directory": str(directory.absolute()), "files": checked})
        return
    click.echo(f"{directory}: {len(checked)} files match their sha256")
