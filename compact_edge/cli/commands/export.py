"""`compact-edge export`: export a checkpoint directory to a file or folder of one format."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compact_edge.flags import DIRECTORY, QuantCommand, format_choices, format_options

if TYPE_CHECKING:
    from compact.base.licences import NamingLicence
    from compact.sources.model_source import ModelSource
    from exporters.base import Format
    from exporters.format_values import Target


def _format_option(function: Any) -> Any:
    """Add `--format` and `--quant`, whose values come from the registered formats."""
    from exporters.registry import formats

    names = [each.name for each in formats()]
    defaults = ", ".join(f"{each.export_quant} for {each.name}" for each in formats())
    quant = click.option(
        "--quant",
        help=f"Quantization type, with its llama.cpp or onnxruntime-genai name, or `list` (default: {defaults}).",
    )
    choice = click.Choice(names)
    return click.option("--format", "name", type=choice, default=names[0], show_default=True, help="File format.")(
        quant(function)
    )


@click.command(cls=QuantCommand)
@click.argument("checkpoint")
@_format_option
@format_options("export")
@click.option(
    "--calibration-tokens", type=int, help="Tokens to use of that text (default: 32768; 524288 for a Hub data set)."
)
@click.option("--out", type=DIRECTORY, required=True, help="Output directory.")
@click.option("--force", is_flag=True, help="Replace an earlier output.")
@click.option("--no-check", is_flag=True, help="Skip the parity gate.")
@click.option("--no-cache", is_flag=True, help="Recompute every stage; do not use or write the cache.")
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON to stdout.")
def export(
    checkpoint: str,
    name: str,
    quant: str | None,
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
    from compact.base.cache import open_cache
    from compact.base.files import publish
    from compact.base.licences import derived_name, licence_note
    from compact.calibration.calibration_set import STDLIB_PROSE
    from compact.pruning.calibration_choice import calibration_for
    from compact.pruning.context import Context
    from compact.pruning.options import PruneOptions
    from compact.pruning.plan import PLAN, read_plan
    from compact.requested_texts import check_calibration
    from compact.sources.model_source import open_source
    from compact_edge.cli.library_env import quiet_libraries
    from compact_edge.output import check_output, existing
    from compact_edge.terminal.console import Console, print_json
    from exporters.card import licence_of
    from exporters.format_values import Request, Variant
    from exporters.gguf.artifact import checkpoint_id
    from exporters.registry import format_named
    from targets.profile import load_profile

    chosen = format_named(name)
    target = load_profile(chosen.profile)
    type_name = quant or chosen.export_quant
    choices = format_choices(values, "export")
    _check_choices(chosen, target, type_name, choices)
    texts: tuple[str, ...] = choices.get("calibration") or ()
    quiet_libraries(checkpoint, *texts)
    files = [value for value in choices.values() if isinstance(value, Path)]
    check_output(out, force=force, inputs=existing(checkpoint, *texts, *files))
    asked = PruneOptions(calibration=texts or (STDLIB_PROSE,), calibration_tokens=calibration_tokens)
    check_calibration(checkpoint, asked)
    console = Console()
    with open_cache(enabled=not no_cache) as cache:
        source = open_source(checkpoint, cache, console)
        licence = licence_of(source)
        if licence is not None:
            console.note(licence_note(licence, source.directory, card=False))
        plan = read_plan(source.directory / PLAN) if (source.directory / PLAN).is_file() else None
        resolved = chosen.resolve(target, source, quant=type_name, choices=choices)
        request = Request(
            label="exported",
            checkpoint=source.directory,
            checkpoint_id=checkpoint_id(source.directory),
            name=derived_name(source.name, licence),
            description=None,
            published=True,
            source=source,
            calibration=calibration_for(Context(source, asked, cache, console)),
            measures=bool(texts),
            pre=plan.pre if plan is not None else None,
        )
        artifact = resolved.make(request, cache, console)
        variant = Variant(request.label, request.checkpoint, request.checkpoint_id, artifact)
        for note in resolved.notes(artifact):
            console.note(note)
        report = None if no_check else resolved.check(variant, request, None, console)
        if report is not None:
            report.require()
        with publish(out, force=force, needed_bytes=artifact.size_bytes) as work:
            names = resolved.place(work, variant, check=not no_check)
            _finish(source, licence, work)
    if as_json:
        figures = {
            "file": str((out / names[0]).absolute()),
            "files": list(names),
            "quant": artifact.quant,
            "size_bytes": artifact.size_bytes,
            "bits_per_weight": artifact.bits_per_weight,
            **resolved.export_figures(artifact),
        }
        print_json({**figures, "parity": None if report is None else report.as_dict()})
        return
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    click.echo(
        f"wrote {out / names[0]}{more}: {artifact.size_bytes / 1e6:.1f} MB, {artifact.quant}, "
        f"{artifact.bits_per_weight:.2f} bits per weight"
    )
    for check in report.checks if report is not None else ():
        click.echo(f"  {check.name}: {check.detail}")


def _check_choices(chosen: type[Format], target: Target, quant: str, choices: dict[str, Any]) -> None:
    """Check the options before the model is opened."""
    from compact.base.errors import UsageError
    from compact_edge.build.options import foreign_flags
    from exporters.registry import formats

    for each in formats():
        for flag in foreign_flags(each, (chosen.name,), choices, "export"):
            raise UsageError(f"{flag}: applies only to {each.label}", f"leave it out, or use --format {each.name}")
    chosen.check_export(target, quant, choices)


def _finish(source: ModelSource, licence: NamingLicence | None, work: Path) -> None:
    """Write the files that accompany every artifact: legal files and checksums."""
    from compact.base.files import write_sums
    from compact.base.licences import legal_files, write_notice

    for path in legal_files(source.directory):
        shutil.copyfile(path, work / path.name)
    write_notice(licence, work)
    write_sums(work)
