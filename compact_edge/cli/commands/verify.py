"""`compact-edge verify`: check the hashes of published files, or rebuild a release's files and compare."""

from __future__ import annotations

from pathlib import Path

import click

from compact_edge.flags import DIRECTORY


@click.command()
@click.argument("directory", type=DIRECTORY)
@click.option(
    "--rebuild", is_flag=True, help="Build the files of a release again from plan.json and the source, and compare."
)
@click.option("--model", help="With --rebuild: the source model, if it is not a built-in model.")
@click.option(
    "--plan",
    type=DIRECTORY,
    help="With --rebuild: folder of the plan, if the plan has an updates.safetensors.",
)
@click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout.")
def verify(directory: Path, rebuild: bool, model: str | None, plan: Path | None, as_json: bool) -> None:
    """Check every file of a published DIRECTORY against its SHA256SUMS.

    In a release, also check that every file named in a manifest exists and has the right hash.

    With --rebuild, build the files of a release again and compare the bytes. F32, F16, BF16 and Q8_0 files must be
    identical on every machine. Other types are compared only if the build of the engine and the instruction set are the
    same. Otherwise they are reported as not comparable (exit code 69).
    """
    from compact.base.errors import UsageError
    from compact_edge.release.verify import checked_files
    from compact_edge.terminal.console import print_json

    for option, given in (("--model", model is not None), ("--plan", plan is not None)):
        if given and not rebuild:
            raise UsageError(f"{option} is only for --rebuild", "add --rebuild, or omit it")
    checked = checked_files(directory)
    if rebuild:
        from compact_edge.cli.library_env import quiet_libraries
        from compact_edge.release import command

        quiet_libraries(model)
        command.rebuild(directory, model, plan, as_json=as_json)
        return
    if as_json:
        print_json({"directory": str(directory.absolute()), "files": checked})
        return
    click.echo(f"{directory}: {len(checked)} files match their sha256")
