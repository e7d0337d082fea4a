"""`compact-edge prune`: prune a model to a smaller Hugging Face checkpoint."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

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


@click.command(cls=GroupedCommand)
@click.argument("model")
@click.option("--out", type=DIRECTORY, required=True, help="Output directory.")
@budget_options
@click.option("--quant", help="Make intermediate_size a multiple of the block size of this GGUF type.")
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

    To use several devices for the calibration, start one process per device with torchrun: torchrun --nproc-per-node 2
    -m compact_edge prune MODEL --out DIR.
    """
    from compact.base.distributed import joined
    from compact_edge.cli.library_env import quiet_libraries

    quiet_libraries(model, *values["calibration"], *values["recover_text"])
    with joined(values["device"]):
        _prune(model, out, quant, force=force, use_cache=not no_cache, as_json=as_json, values=values)


def _prune(
    model: str, out: Path, quant: str | None, *, force: bool, use_cache: bool, as_json: bool, values: dict[str, Any]
) -> None:
    from compact.base.cache import open_cache
    from compact.base.distributed import is_main
    from compact.base.errors import UsageError
    from compact.base.files import publish, write_sums, write_text
    from compact.base.licences import derived_name, licence_note, write_notice
    from compact.base.progress import SILENT
    from compact.decide import decide
    from compact.pruning.apply import prune as apply
    from compact.pruning.context import Context
    from compact.pruning.ranking import rank_vocabulary
    from compact.requested_texts import check_calibration
    from compact.sources.model_source import open_source
    from compact.vocabulary.language_costs import language_costs
    from compact_edge.build.fit import checkpoint_sizes
    from compact_edge.build.method_report import as_json as method_as_json
    from compact_edge.build.method_report import gain_lines, less_loss
    from compact_edge.build.search_report import SPLIT_SVG, print_search, split_svg
    from compact_edge.build.variant import sizes_by_part
    from compact_edge.build.vocabulary_report import as_json as vocabulary_as_json
    from compact_edge.build.vocabulary_report import lines as vocabulary_lines
    from compact_edge.output import check_output, existing
    from compact_edge.terminal.console import Console, print_json
    from exporters.card import licence_of
    from exporters.llamacpp.quant_types import grid

    texts = (*values["calibration"], *values["recover_text"], values["vocab_corpus"], values["keep_tokens"])
    inputs = existing(model, *texts)
    check_output(out, force=force, inputs=inputs)
    options = prune_options(values, channel_grid=grid(quant) if quant else 1)
    if options.fit_bytes is not None and quant is None:
        raise UsageError("--fit: the type of the file is missing", "give the GGUF type with --quant")
    check_calibration(model, options)
    console = Console() if is_main() else SILENT
    with open_cache(enabled=use_cache) as cache:
        source = open_source(model, cache, console)
        licence = licence_of(source)
        if licence is not None:
            console.note(licence_note(licence, source.directory, card=False))
            if derived_name(out.name, licence) != out.name:
                console.note(f"{out.name}: rename it to {derived_name(out.name, licence)} before you publish it")
        context = Context(source, options, cache, console)
        size_of = None
        if quant is not None and options.fit_bytes is not None:
            size_of = checkpoint_sizes(source, context.once(rank_vocabulary), quant)
        decision = decide(context, size_of=size_of)
        plan = decision.plan
        if not is_main():
            return
        needed = sum(ref.n_bytes for ref in source.tensors.values())
        with publish(out, force=force, needed_bytes=needed) as work:
            apply(source, plan, work, updates=decision.updates, progress=console)
            write_notice(licence, work)
            if plan.search is not None:
                write_text(work / SPLIT_SVG, split_svg(plan.search, source.name))
            write_sums(work)
    after = sizes_by_part(out)
    removed = 1 - after["total"] / source.n_params
    if as_json:
        print_json(
            {
                "out": str(out.absolute()),
                "plan_id": plan.id,
                "vocab_size": plan.vocab_size,
                "intermediate_size": plan.intermediate_size,
                "parameters_before": source.n_params,
                "parameters_after": after,
                "removed": removed,
                **method_as_json(plan),
                **vocabulary_as_json(plan),
                "search": plan.search,
            }
        )
        return
    if plan.search is not None:
        print_search(plan.search)
    counts = f"{source.n_params / 1e6:.1f}M -> {after['total'] / 1e6:.1f}M parameters ({removed:.1%} removed)"
    click.echo(
        f"{source.name}: {counts}, vocab_size {source.vocab_size} -> {plan.vocab_size}, "
        f"intermediate_size {source.intermediate_size} -> {plan.intermediate_size}"
    )
    costs = language_costs(source.directory, out)
    for line in (*vocabulary_lines(plan, costs), *gain_lines(plan, options), *less_loss(source, plan, options)):
        click.echo(line)
    command = (
        f"compact-edge export {shlex.quote(str(out))} --quant {quant or 'Q8_0'} --out {shlex.quote(f'{out}-gguf')}"
    )
    click.echo(f"wrote {out}\nnext:\n  {command}")
