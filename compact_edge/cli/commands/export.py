"""`compact-edge export`: export a checkpoint directory to a file or folder of one format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from compact_edge.flags import DIRECTORY, QuantCommand, format_choices, format_options

if TYPE_CHECKING:
    from compact_edge.building.exporting import ExportOptions, ExportResult


def _format_option(function: Any) -> Any:
    """Add `--format` and `--quant`, whose values come from the registered formats."""
    from exporters.registry import formats

    names = [each.name for each in formats()]
    defaults = ", ".join(f"{each.export_quant} for {each.name}" for each in formats())
    quant = click.option(
        "--quant",
        help=f"Quantization type, as llama.cpp or onnxruntime-genai names it (default: {defaults}). `--quant list` "
        "prints all types.",
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
def export(checkpoint: str, as_json: bool, **values: Any) -> None:
    """Export CHECKPOINT to GGUF or ONNX and check the file.

    CHECKPOINT is a Hugging Face checkpoint directory, pruned or not, a model on the Hugging Face Hub (org/name or
    org/name@revision) or a built-in model (tiny, smollm2-135m).
    """
    from compact_edge.building.exporting import export_checkpoint
    from compact_edge.cli.library_env import quiet_libraries
    from compact_edge.terminal.console import Console, print_json

    options = export_options(checkpoint, **values)
    quiet_libraries(checkpoint, *(options.choices.get("calibration") or ()))
    result = export_checkpoint(options, Console())
    if as_json:
        print_json(result.as_dict())
    else:
        _show(result)


def export_options(checkpoint: str, **values: Any) -> ExportOptions:
    """Return the options of an export from the values of the flags."""
    from compact_edge.building.exporting import ExportOptions

    return ExportOptions(
        checkpoint=checkpoint,
        out=values["out"],
        format=values["name"],
        quant=values["quant"],
        choices=format_choices(values, "export"),
        calibration_tokens=values["calibration_tokens"],
        force=values["force"],
        check=not values["no_check"],
        use_cache=not values["no_cache"],
    )


def _show(result: ExportResult) -> None:
    artifact, names = result.artifact, result.files
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    click.echo(
        f"wrote {result.out / names[0]}{more}: {artifact.size_bytes / 1e6:.1f} MB, {artifact.quant}, "
        f"{artifact.bits_per_weight:.2f} bits per weight"
    )
    for check in result.parity.checks if result.parity is not None else ():
        click.echo(f"  {check.name}: {check.detail}")
