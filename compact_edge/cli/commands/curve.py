"""`compact-edge curve`: show what each size and type of a model costs, as a table and a plot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from compact_edge.flags import (
    DIRECTORY,
    QuantCommand,
    calibration_options,
    compute_options,
    pre_option,
    prune_options,
    ranking_options,
    recovery_options,
)

# Parameters of --recover and the options that belong to it.
_TRAINING = ("recover", "learning_rate", "train")


@click.command(cls=QuantCommand)
@click.argument("model")
@click.option(
    "--target",
    default="gguf",
    show_default=True,
    help="Device profile: a name from `compact-edge targets`, or a TOML file.",
)
@click.option(
    "--quant", help="Compare the sizes of this type only (default: all types). `--quant list` prints all types."
)
@click.option(
    "--points",
    type=click.IntRange(1, 50),
    default=8,
    show_default=True,
    help="Number of files to make and measure, evenly spaced along the front.",
)
@click.option(
    "--search-minutes",
    type=float,
    help="Time limit for these files, in minutes. An interrupted search continues from its cached results.",
)
@ranking_options
@pre_option
@calibration_options
@recovery_options
@compute_options
@click.option("--out", type=DIRECTORY, help="Directory for curve.json and curve.svg (default: NAME-curve).")
@click.option("--force", is_flag=True, help="Replace an earlier output.")
@click.option("--no-cache", is_flag=True, help="Measure everything again; do not use or write the cache.")
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON to stdout.")
def curve(
    model: str,
    *,
    target: str,
    quant: str | None,
    points: int,
    search_minutes: float | None,
    out: Path | None,
    force: bool,
    no_cache: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """Show the best files of MODEL: for each file size, the sizes and the type that lose least.

    Predicts bits per byte, file size and speed of every type at every vocab_size and intermediate_size, and measures
    some of them as real files, on held-out text of every calibration source. Prints the command that builds each file.
    No model is written. No weights are repaired: --method repair and --repair-tokens have no effect. With --recover,
    the measured cut that loses most, up to 30%, is also trained and measured again.

    MODEL is a checkpoint directory, a GGUF file, a model on the Hugging Face Hub (org/name or org/name@revision) or a
    built-in model (tiny, smollm2-135m).
    """
    from compact.base.cache import open_cache
    from compact.base.files import publish, write_json, write_sums, write_text
    from compact.pruning.context import Context
    from compact.requested_texts import check_calibration
    from compact.sources.model_source import open_source
    from compact_edge.cli.library_env import quiet_libraries
    from compact_edge.inspect.curve import CurveOptions, curve_svg, measure_curve, print_curve
    from compact_edge.output import check_output, existing
    from compact_edge.terminal.console import Console, print_json
    from exporters.base import size_not_known
    from exporters.registry import format_of_runtime
    from targets.profile import load_profile

    quiet_libraries(model, *values["calibration"])
    inputs = existing(model, *values["calibration"], values["vocab_corpus"], values["keep_tokens"])
    profile = load_profile(target)
    kind = format_of_runtime(profile.runtime)
    if not kind.predicts_size:
        raise size_not_known(kind.name, f"--target {target}")
    kind.check_choices(profile, quant, {})
    if out is not None:
        check_output(out, force=force, inputs=inputs)
    pruning = prune_options(values)
    check_calibration(model, pruning)
    console = Console()
    options = CurveOptions(model, target, quant, points, search_minutes, tuple(_given(values)), recover=pruning.recover)
    pruning = replace(pruning, recover=None)
    with open_cache(enabled=not no_cache) as cache:
        source = open_source(model, cache, console, pre=values["pre"])
        out = (out or Path(f"{source.name}-curve")).absolute()
        check_output(out, force=force, inputs=inputs)
        found = measure_curve(options, profile, Context(source, pruning, cache, console))
        with publish(out, force=force) as work:
            write_json(work / "curve.json", found)
            write_text(work / "curve.svg", curve_svg(found))
            write_sums(work)
    if as_json:
        print_json({"out": str(out), **found})
        return
    print_curve(found)
    click.echo(f"wrote {out}")


def _given(values: Mapping[str, Any]) -> list[str]:
    """Return the options in `values` that the user gave, without training. A build accepts them too."""
    context = click.get_current_context()
    words: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        if (
            name in values
            and not name.startswith(_TRAINING)
            and context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        ):
            given = values[name] if parameter.multiple else [values[name]]
            words += [word for value in given for word in (parameter.opts[0], str(value))]
    return words
