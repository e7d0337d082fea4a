"""`compact-edge curve`: show what each size of a model costs, as a table and a plot."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from compact_edge.flags import (
    DIRECTORY,
    QuantCommand,
    calibration_options,
    compute_options,
    prune_options,
    ranking_options,
)


@click.command(cls=QuantCommand)
@click.argument("model")
@click.option(
    "--quant",
    help="GGUF type for the file sizes (default: the type of the target gguf). `--quant list` prints all types.",
)
@click.option(
    "--points",
    type=click.IntRange(1, 50),
    default=6,
    show_default=True,
    help="Number of ratios, evenly spaced from 0.05 to 0.5. For each, 6 splits are evaluated.",
)
@ranking_options
@calibration_options
@compute_options
@click.option("--out", type=DIRECTORY, help="Directory for curve.json and curve.svg (default: NAME-curve).")
@click.option("--force", is_flag=True, help="Replace an earlier output.")
@click.option("--no-cache", is_flag=True, help="Measure every size again; do not use or write the cache.")
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON to stdout.")
def curve(
    model: str,
    *,
    quant: str | None,
    points: int,
    out: Path | None,
    force: bool,
    no_cache: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """Show what each size of MODEL costs: bits per byte on each text, file size and estimated characters/s.

    For each ratio of removed parameters, search the best split between vocabulary and FFN. Each split is judged by bits
    per byte on held-out text of every calibration source. No model is written, and no weights are repaired: --method
    repair and --repair-tokens have no effect.

    MODEL is a checkpoint directory, a .gguf file, a model on the Hugging Face Hub (org/name or org/name@revision) or a
    built-in model (tiny, smollm2-135m).
    """
    from compact.base.cache import open_cache
    from compact.base.files import publish, write_json, write_sums, write_text
    from compact.pruning.calibration_choice import calibration_for
    from compact.pruning.context import Context
    from compact.pruning.ranking import rank_vocabulary
    from compact.requested_texts import check_calibration
    from compact.sources.model_source import open_source
    from compact_edge.cli.library_env import quiet_libraries
    from compact_edge.inspect.curve import curve_svg, measure_curve, print_curve, ratios_of
    from compact_edge.output import check_output, existing
    from compact_edge.terminal.console import Console, print_json
    from exporters.format_values import SizeRequest
    from exporters.gguf.format import GgufFormat
    from targets.profile import load_profile

    quiet_libraries(model, *values["calibration"])
    inputs = existing(model, *values["calibration"], values["vocab_corpus"], values["keep_tokens"])
    profile = load_profile(GgufFormat.profile)
    GgufFormat.check_choices(profile, quant, {})
    if out is not None:
        check_output(out, force=force, inputs=inputs)
    check_calibration(model, prune_options(values))
    console = Console()
    with open_cache(enabled=not no_cache) as cache:
        source = open_source(model, cache, console)
        out = (out or Path(f"{source.name}-curve")).absolute()
        check_output(out, force=force, inputs=inputs)
        gguf = GgufFormat.resolve(profile, source, quant=quant)
        options = prune_options(values, channel_grid=gguf.channel_grid)
        context = Context(source, options, cache, console)
        sizes = gguf.sizes(SizeRequest(source, context.once(rank_vocabulary), f"{source.name}-compact", ""))
        context = context.with_value(calibration_for, calibration_for(context, keep_out=True))
        found = measure_curve(context, sizes, gguf.quant, ratios_of(points))
        with publish(out, force=force) as work:
            write_json(work / "curve.json", found.as_dict())
            write_text(work / "curve.svg", curve_svg(found))
            write_sums(work)
    if as_json:
        print_json({"out": str(out), **found.as_dict()})
        return
    print_curve(found)
    click.echo(f"wrote {out}\nnext, for any size in this range:")
    words = ["build", model, "--target", GgufFormat.profile, "--quant", gguf.quant, *_given(values)]
    click.echo(f"  compact-edge {shlex.join(words)} --fit SIZE")


def _given(values: Mapping[str, Any]) -> list[str]:
    """Return the options in `values` that the user gave. A build of the same model accepts them too."""
    context = click.get_current_context()
    words: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        if name in values and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            given = values[name] if parameter.multiple else [values[name]]
            words += [word for value in given for word in (parameter.opts[0], str(value))]
    return words
