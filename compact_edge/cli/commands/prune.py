"""`compact-edge prune`: prune a model to a smaller Hugging Face checkpoint."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compact_edge.flags import (
    DIRECTORY,
    GroupedCommand,
    budget_options,
    calibration_options,
    compute_options,
    prune_options,
    recovery_options,
)

if TYPE_CHECKING:
    from compact.pruning.options import PruneOptions
    from compact_edge.building.pruning import PruneResult


@click.command(cls=GroupedCommand)
@click.argument("model")
@click.option("--out", type=DIRECTORY, required=True, help="Output directory.")
@budget_options
@click.option("--quant", help="Keep intermediate_size a multiple of the block size of this GGUF type.")
@calibration_options
@recovery_options
@compute_options
@click.option("--force", is_flag=True, help="Replace an earlier output.")
@click.option("--no-cache", is_flag=True, help="Recompute every stage; do not use or write the cache.")
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON to stdout.")
def prune(model: str, out: Path, quant: str | None, force: bool, no_cache: bool, as_json: bool, **values: Any) -> None:
    """Prune MODEL with COMPACT and write a standard Hugging Face checkpoint with its plan.json.

    MODEL is a checkpoint directory, a .gguf file, a model on the Hugging Face Hub (org/name or org/name@revision) or a
    built-in model (tiny, smollm2-135m).

    To calibrate on several devices, start one process per device:

    `torchrun --nproc-per-node 2 -m compact_edge prune MODEL --out DIR`
    """
    from compact.base.distributed import is_main, joined
    from compact.base.progress import SILENT
    from compact_edge.building.pruning import prune_model
    from compact_edge.cli.library_env import quiet_libraries
    from compact_edge.terminal.console import Console, print_json

    quiet_libraries(model, *values["calibration"], *values["recover_text"])
    with joined(values["device"]):
        options = pruning_options(quant, **values)
        console = Console() if is_main() else SILENT
        result = prune_model(
            model,
            out,
            options,
            quant=quant,
            force=force,
            use_cache=not no_cache,
            count_languages=not as_json,
            progress=console,
        )
        if result is None:
            return
        if as_json:
            print_json(result.as_dict())
        else:
            _show(result, quant)


def pruning_options(quant: str | None, **values: Any) -> PruneOptions:
    """Return the options of pruning from the values of the flags."""
    from exporters.llamacpp.quant_types import grid

    return prune_options(values, channel_grid=grid(quant) if quant else 1)


def _show(result: PruneResult, quant: str | None) -> None:
    from compact_edge.building.method_report import gain_lines, less_loss
    from compact_edge.building.search_report import print_search
    from compact_edge.building.vocabulary_report import lines

    source, plan, out = result.source, result.plan, result.out
    if plan.search is not None:
        print_search(plan.search)
    before, after = source.n_params, result.parts["total"]
    counts = f"{before / 1e6:.1f}M -> {after / 1e6:.1f}M parameters ({result.removed:.1%} removed)"
    click.echo(
        f"{source.name}: {counts}, vocab_size {source.vocab_size} -> {plan.vocab_size}, "
        f"intermediate_size {source.intermediate_size} -> {plan.intermediate_size}"
    )
    options = result.pruning
    for line in (*lines(plan, result.languages), *gain_lines(plan, options), *less_loss(source, plan, options)):
        click.echo(line)
    command = (
        f"compact-edge export {shlex.quote(str(out))} --quant {quant or 'Q8_0'} --out {shlex.quote(f'{out}-gguf')}"
    )
    click.echo(f"wrote {out}\nnext:\n  {command}")
