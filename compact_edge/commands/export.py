"""`compact-edge export`: a checkpoint directory to GGUF or ONNX."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compact_edge.commands.shared import (
    DIRECTORY,
    FILE,
    QuantCommand,
    file_choices,
    file_options,
    onnx_choices,
    onnx_options,
)

if TYPE_CHECKING:
    from compact.cache import Cache
    from compact.calibration import Calibration
    from compact.licences import NamingLicence
    from compact.plan import PrunePlan
    from compact.source import ModelSource
    from compact_edge.artifact_files import FileOptions
    from compact_edge.console import Console
    from exporters.gate import ParityReport

# The types that lose least: what a checkpoint is, for others to quantise.
_DEFAULT_QUANT = {"gguf": "F16", "onnx": "fp32"}


@click.command(cls=QuantCommand)
@click.argument("checkpoint")
@click.option(
    "--format", "form", type=click.Choice(["gguf", "onnx"]), default="gguf", show_default=True, help="File format."
)
@click.option(
    "--quant",
    help="Type, as llama.cpp or onnxruntime-genai names it, or `list` (default: F16 for gguf, fp32 for onnx).",
)
@click.option("--embedding-quant", help="GGUF: type of token_embd, where not llama.cpp's choice.")
@click.option("--imatrix", type=FILE, help="GGUF: a ready importance matrix of this checkpoint.")
@click.option(
    "--calibration", multiple=True, help="GGUF: measure an importance matrix on this text, or these (as in build)."
)
@click.option("--calibration-tokens", type=int, help="Tokens of that text (default: 32768; of a Hub data set 524288).")
@file_options
@onnx_options
@click.option("--out", type=DIRECTORY, required=True, help="Output directory.")
@click.option("--force", is_flag=True, help="Replace an earlier output.")
@click.option("--no-check", is_flag=True, help="Skip the parity gate.")
@click.option("--no-cache", is_flag=True, help="Make every stage anew and keep nothing.")
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON to stdout.")
def export(
    checkpoint: str,
    form: str,
    quant: str | None,
    calibration: tuple[str, ...],
    calibration_tokens: int | None,
    out: Path,
    force: bool,
    no_check: bool,
    no_cache: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """Export CHECKPOINT to GGUF or ONNX and check the file.

    CHECKPOINT is a Hugging Face checkpoint directory, pruned or not, a model on the Hugging Face Hub (org/name or
    org/name@revision) or a built-in model (tiny, smollm2-135m).
    """
    from compact.cache import open_cache
    from compact.calibration import STDLIB_PROSE
    from compact.licences import derived_name, licence_note
    from compact.plan import PLAN, read_plan
    from compact.prune import PruneOptions, calibration_for, check_calibration
    from compact.source import open_source
    from compact_edge.console import Console, print_json
    from compact_edge.output import check_output, existing
    from compact_edge.quiet import quiet_libraries
    from exporters.card import licence_of

    type_name = quant or _DEFAULT_QUANT[form]
    files = file_choices(values)
    _check_options(form, type_name, calibration, files, values)
    quiet_libraries(checkpoint, *calibration)
    check_output(out, force=force, inputs=existing(checkpoint, *calibration, values["imatrix"]))
    asked = PruneOptions(calibration=calibration or (STDLIB_PROSE,), calibration_tokens=calibration_tokens)
    check_calibration(checkpoint, asked)
    console = Console()
    with open_cache(enabled=not no_cache) as cache:
        source = open_source(checkpoint, cache, console)
        licence = licence_of(source)
        if licence is not None:
            console.note(licence_note(licence, source.directory, card=False))
        plan = source.directory / PLAN
        job = _Job(
            source=source,
            licence=licence,
            name=derived_name(source.name, licence),
            plan=read_plan(plan) if plan.is_file() else None,
            texts=calibration_for(source, asked, cache=cache, progress=console),
            quant=type_name,
            measured=bool(calibration),
            out=out,
            force=force,
            check=not no_check,
            cache=cache,
            console=console,
        )
        done = _export_gguf(job, files, values) if form == "gguf" else _export_onnx(job, values)
    if as_json:
        print_json({**done.figures, "parity": None if done.report is None else done.report.as_dict()})
        return
    figures = done.figures
    more = f" and {len(figures['files']) - 1} more" if len(figures["files"]) > 1 else ""
    click.echo(
        f"wrote {out / figures['files'][0]}{more}: {figures['size_bytes'] / 1e6:.1f} MB, {figures['quant']}, "
        f"{figures['bits_per_weight']:.2f} bits per weight"
    )
    for check in done.report.checks if done.report is not None else ():
        click.echo(f"  {check.name}: {check.detail}")


@dataclass(frozen=True)
class _Job:
    """What both formats need."""

    source: ModelSource
    licence: NamingLicence | None
    name: str
    plan: PrunePlan | None
    texts: Calibration
    quant: str
    measured: bool
    out: Path
    force: bool
    check: bool
    cache: Cache
    console: Console


@dataclass(frozen=True)
class _Done:
    """What was written, for people and for `--json`."""

    figures: dict[str, Any]
    report: ParityReport | None


def _check_options(
    form: str, quant: str, calibration: tuple[str, ...], files: FileOptions, values: dict[str, Any]
) -> None:
    """What can be refused before the model is opened."""
    from compact.errors import UsageError
    from exporters.quant_types import quant_named

    imatrix = values["imatrix"]
    if form == "onnx":
        from compact_edge.format_onnx import settle_options
        from targets.profile import load_profile

        settle_options(load_profile("onnx"), quant, onnx_choices(values))
        given = {
            "--embedding-quant": values["embedding_quant"],
            "--imatrix": imatrix,
            "--calibration": calibration,
            "--save-imatrix": files.save_imatrix,
            "--modelfile": files.modelfile,
            "--split-max-size": files.split_max_bytes,
        }
        for name in (name for name, value in given.items() if value):
            raise UsageError(f"{name}: is for GGUF, which is not written here", "leave it out, or use --format gguf")
        return
    for name in onnx_choices(values).named():
        raise UsageError(f"{name}: is for ONNX, which is not written here", "leave it out, or use --format onnx")
    if imatrix is not None and calibration:
        raise UsageError("--imatrix and --calibration exclude each other", "give one of them")
    quant_named(quant)
    if files.save_imatrix and imatrix is None and not calibration:
        raise UsageError("--save-imatrix: there is nothing to measure it on", "give --calibration TEXT")


def _export_gguf(job: _Job, files: FileOptions, values: dict[str, Any]) -> _Done:
    from compact.store import publish
    from compact_edge.artifact_files import check_files, place_artifact
    from exporters.artifact import Export, artifact_notes, checkpoint_id, make_artifact
    from exporters.card import base_model_of
    from exporters.gguf import GgufMetadata, window_note
    from exporters.parity import check_artifact

    directory = job.source.directory
    request = Export(
        checkpoint=directory,
        checkpoint_id=checkpoint_id(directory),
        quant=job.quant,
        name=job.name,
        pre=job.plan.pre if job.plan is not None else None,
        embedding_quant=values["embedding_quant"],
        imatrix_file=values["imatrix"],
        texts=job.texts.texts if job.measured else (),
        texts_id=job.texts.id,
        texts_name=job.texts.label,
        with_imatrix=files.save_imatrix,
        metadata=GgufMetadata(name=job.name, base_model=job.source.hub_id or base_model_of(directory)),
    )
    artifact = make_artifact(request, job.cache, job.console)
    check_files(artifact, files)
    window = window_note(job.source.family, job.source.config)
    for note in (*([] if window is None else [window]), *artifact_notes(artifact)):
        job.console.note(note)
    report = None
    if job.check:
        report = check_artifact(
            directory,
            artifact.path,
            artifact.quant,
            job.texts.texts,
            unpruned=None,
            baseline_kl=None,
            pre=request.pre,
            progress=job.console,
        )
        report.require()
    with publish(job.out, force=job.force, needed_bytes=artifact.size_bytes) as work:
        names = place_artifact(work, artifact, directory, files, check=job.check)
        _finish(job, work)
    figures = _figures(job, names, artifact)
    return _Done({**figures, "sha256": artifact.sha256, "imatrix_id": artifact.imatrix_id}, report)


def _export_onnx(job: _Job, values: dict[str, Any]) -> _Done:
    from compact.store import publish
    from compact_edge.format_onnx import onnx_format, place_onnx
    from exporters.artifact import checkpoint_id
    from exporters.onnx_artifact import make_onnx_artifact
    from exporters.onnx_parity import check_onnx_artifact
    from targets.profile import load_profile

    directory = job.source.directory
    form = onnx_format(load_profile("onnx"), job.source, quant=job.quant, choices=onnx_choices(values))
    artifact = make_onnx_artifact(directory, checkpoint_id(directory), job.name, form.made_with, job.cache, job.console)
    for note in form.notes(artifact):
        job.console.note(note)
    report = None
    if job.check:
        report = check_onnx_artifact(
            directory,
            artifact.folder,
            artifact.quant,
            job.texts.texts,
            unpruned=None,
            baseline_kl=None,
            progress=job.console,
        )
        report.require()
    with publish(job.out, force=job.force, needed_bytes=artifact.size_bytes) as work:
        names = place_onnx(work, artifact)
        _finish(job, work)
    return _Done({**_figures(job, names, artifact), "execution_provider": form.made_with.execution_provider}, report)


def _finish(job: _Job, work: Path) -> None:
    """What lies beside every artifact: legal files and checksums."""
    from compact.licences import legal_files, write_notice
    from compact.store import write_sums

    for path in legal_files(job.source.directory):
        shutil.copyfile(path, work / path.name)
    write_notice(job.licence, work)
    write_sums(work)


def _figures(job: _Job, names: tuple[str, ...], artifact: Any) -> dict[str, Any]:
    return {
        "file": str((job.out / names[0]).absolute()),
        "files": list(names),
        "quant": artifact.quant,
        "size_bytes": artifact.size_bytes,
        "bits_per_weight": artifact.bits_per_weight,
    }
