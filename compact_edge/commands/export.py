"""`compact-edge export`: a checkpoint directory to GGUF."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import click

from compact_edge.commands.shared import DIRECTORY, FILE, QuantCommand, file_choices, file_options


@click.command(cls=QuantCommand)
@click.argument("checkpoint")
@click.option("--format", "form", type=click.Choice(["gguf"]), default="gguf", show_default=True, help="File format.")
@click.option("--quant", default="F16", show_default=True, help="GGUF type, as llama.cpp names it, or `list`.")
@click.option("--embedding-quant", help="Type of token_embd, where not llama.cpp's choice.")
@click.option("--imatrix", type=FILE, help="A ready importance matrix of this checkpoint.")
@click.option("--calibration", help="Measure an importance matrix on this text (as in build).")
@click.option("--calibration-tokens", type=int, help="Tokens of that text (default: 32768; of a Hub data set 524288).")
@file_options
@click.option("--out", type=DIRECTORY, required=True, help="Output directory.")
@click.option("--force", is_flag=True, help="Replace an earlier output.")
@click.option("--no-check", is_flag=True, help="Skip the parity gate.")
@click.option("--no-cache", is_flag=True, help="Make every stage anew and keep nothing.")
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON to stdout.")
def export(
    checkpoint: str,
    form: str,
    quant: str,
    embedding_quant: str | None,
    imatrix: Path | None,
    calibration: str | None,
    calibration_tokens: int | None,
    out: Path,
    force: bool,
    no_check: bool,
    no_cache: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """Export CHECKPOINT to GGUF and check the file.

    CHECKPOINT is a Hugging Face checkpoint directory, pruned or not, a model on the Hugging Face Hub (org/name or
    org/name@revision) or a built-in model (tiny, smollm2-135m).
    """
    from compact.cache import open_cache
    from compact.calibration import STDLIB_PROSE
    from compact.errors import UsageError
    from compact.licences import derived_name, legal_files, licence_note, write_notice
    from compact.plan import PLAN, read_plan
    from compact.prune import PruneOptions, calibration_for, check_calibration
    from compact.source import open_source
    from compact.store import publish, write_sums
    from compact_edge.artifact_files import check_files, place_artifact
    from compact_edge.console import Console, print_json
    from compact_edge.output import check_output, existing
    from compact_edge.quiet import quiet_libraries
    from exporters.artifact import Export, artifact_notes, checkpoint_id, make_artifact
    from exporters.card import base_model_of, licence_of
    from exporters.gguf import GgufMetadata
    from exporters.parity import check_artifact
    from exporters.quant_types import quant_named

    del form
    if imatrix is not None and calibration is not None:
        raise UsageError("--imatrix and --calibration exclude each other", "give one of them")
    quant_named(quant)
    files = file_choices(values)
    if files.save_imatrix and imatrix is None and calibration is None:
        raise UsageError("--save-imatrix: there is nothing to measure it on", "give --calibration TEXT")
    quiet_libraries(checkpoint, calibration)
    check_output(out, force=force, inputs=existing(checkpoint, calibration, imatrix))
    asked = PruneOptions(calibration=calibration or STDLIB_PROSE, calibration_tokens=calibration_tokens)
    check_calibration(checkpoint, asked)
    console = Console()
    with open_cache(enabled=not no_cache) as cache:
        source = open_source(checkpoint, cache, console)
        directory = source.directory
        licence = licence_of(source)
        name = derived_name(source.name, licence)
        if licence is not None:
            console.note(licence_note(licence, directory, card=False))
        plan = read_plan(directory / PLAN) if (directory / PLAN).is_file() else None
        texts = calibration_for(source, asked, cache=cache, progress=console)
        request = Export(
            checkpoint=directory,
            checkpoint_id=checkpoint_id(directory),
            quant=quant,
            name=name,
            pre=plan.pre if plan is not None else None,
            embedding_quant=embedding_quant,
            imatrix_file=imatrix,
            texts=texts.texts if calibration is not None else (),
            texts_id=texts.id,
            texts_name=texts.label,
            with_imatrix=files.save_imatrix,
            metadata=GgufMetadata(name=name, base_model=source.hub_id or base_model_of(directory)),
        )
        artifact = make_artifact(request, cache, console)
        check_files(artifact, files)
        for note in artifact_notes(artifact):
            console.note(note)
        report = None
        if not no_check:
            report = check_artifact(
                directory,
                artifact.path,
                artifact.quant,
                texts.texts,
                unpruned=None,
                baseline_kl=None,
                pre=request.pre,
                progress=console,
            )
            report.require()
        with publish(out, force=force, needed_bytes=artifact.size_bytes) as work:
            names = place_artifact(work, artifact, directory, files, check=not no_check)
            for path in legal_files(directory):
                shutil.copyfile(path, work / path.name)
            write_notice(licence, work)
            write_sums(work)
    if as_json:
        print_json(
            {
                "file": str((out / names[0]).absolute()),
                "files": list(names),
                "quant": artifact.quant,
                "size_bytes": artifact.size_bytes,
                "bits_per_weight": artifact.summary.bits_per_weight,
                "sha256": artifact.sha256,
                "imatrix_id": artifact.imatrix_id,
                "parity": None if report is None else report.as_dict(),
            }
        )
        return
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    click.echo(
        f"wrote {out / names[0]}{more}: {artifact.size_bytes / 1e6:.1f} MB, {artifact.quant}, "
        f"{artifact.summary.bits_per_weight:.2f} bits per weight"
    )
    for check in report.checks if report is not None else ():
        click.echo(f"  {check.name}: {check.detail}")
