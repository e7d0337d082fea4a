"""`compact-edge verify`: re-hash what was published, or make a release's files again and compare."""

from __future__ import annotations

from pathlib import Path

import click

from compact_edge.commands.shared import DIRECTORY


@click.command()
@click.argument("directory", type=DIRECTORY)
@click.option(
    "--rebuild", is_flag=True, help="Make the files of a release again from plan.json and the source, and compare."
)
@click.option("--model", help="With --rebuild: the source, where it is no built-in model.")
@click.option(
    "--plan", type=DIRECTORY, help="With --rebuild: the plan's folder, where the plan names an updates.safetensors."
)
@click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout.")
def verify(directory: Path, rebuild: bool, model: str | None, plan: Path | None, as_json: bool) -> None:
    """Re-hash every file of a published DIRECTORY against its SHA256SUMS.

    In a release, the manifests are read too: every file that they name must be there with its hash. With --rebuild the
    files are made again. F32, F16, BF16 and Q8_0 must be the same bytes everywhere; a quantised file is compared only
    where the engine's build and the instruction set are those that made it, else it is not comparable (exit code 69).
    """
    from compact.errors import UsageError
    from compact_edge.console import print_json
    from compact_edge.release.verify import checked_files

    for option, given in (("--model", model is not None), ("--plan", plan is not None)):
        if given and not rebuild:
            raise UsageError(f"{option} is for --rebuild", "add --rebuild, or leave it out")
    checked = checked_files(directory)
    if rebuild:
        from compact_edge.quiet import quiet_libraries
        from compact_edge.release import command

        quiet_libraries(model)
        command.rebuild(directory, model, plan, as_json=as_json)
        return
    if as_json:
        print_json({"directory": str(directory.absolute()), "files": checked})
        return
    click.echo(f"{directory}: {len(checked)} files match their sha256")
