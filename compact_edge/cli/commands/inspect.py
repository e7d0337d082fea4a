"""`compact-edge inspect`: show a model's parameters by part, and which models fit a device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from compact_edge.flags import pre_option, split_codes

if TYPE_CHECKING:
    from compact_edge.inspect.inspection import Inspected, Request

_LIST = "list"


@click.command()
@click.argument("models", metavar="[MODEL]...", nargs=-1)
@click.option(
    "--ratio",
    type=float,
    help="Show what remains after removing this share of all parameters, split as by `build --split proportional`.",
)
@click.option("--vocab-size", type=click.IntRange(1), help="Show what remains at this vocab_size.")
@click.option("--intermediate-size", type=click.IntRange(1), help="Show what remains at this intermediate_size.")
@click.option(
    "--languages",
    multiple=True,
    metavar="CODES",
    callback=split_codes,
    help="Show how much text in these languages each vocab_size keeps whole. Codes as for `build`, such as en,de,code.",
)
@click.option("--target", "target_name", help="Show whether the models fit this device: a profile name or a TOML file.")
@click.option("--quant", help="With --target: GGUF type (default: the profile's).")
@click.option(
    "--context", type=click.IntRange(1), help="With --target: context length in tokens (default: the profile's)."
)
@pre_option
@click.option("--list", "listed", is_flag=True, help="List the built-in table of published models.")
@click.option("--all", "every", is_flag=True, help="Show the parameters by part for every model in the built-in table.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="With --all: also plot them to this .svg or .png file.",
)
@click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout.")
def inspect(
    *,
    models: tuple[str, ...],
    ratio: float | None,
    vocab_size: int | None,
    intermediate_size: int | None,
    languages: tuple[str, ...],
    target_name: str | None,
    quant: str | None,
    context: int | None,
    pre: str | None,
    listed: bool,
    every: bool,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Show the sizes of MODEL and its parameters by part: vocabulary, attention, FFN, norms.

    MODEL is one of these:

    \b
    - a checkpoint directory, or a GGUF file;
    - a config.json, or a directory with only that file;
    - a model on the Hugging Face Hub (org/name or org/name@revision), of
      which only config.json is downloaded;
    - a built-in model (tiny, smollm2-135m);
    - a name in the built-in table of published models (--list prints it).

    With --target, show which models fit the device, and the smallest cut that makes each of the others fit. If no MODEL
    is given, the whole built-in table is checked.
    """
    from compact.base.errors import UsageError
    from compact.vocabulary.language_use import parse_languages
    from compact_edge.cli.library_env import quiet_libraries
    from compact_edge.inspect.inspection import Request

    request = Request(ratio, vocab_size, intermediate_size)
    request.check()
    if target_name is None and (quant is not None or context is not None):
        raise UsageError(f"{'--quant' if quant is not None else '--context'} needs --target", "add --target NAME")
    if languages and (listed or every or target_name is not None or len(models) != 1):
        raise UsageError("--languages: exactly one MODEL is needed", "give one MODEL, and no --list, --all or --target")
    if languages:
        parse_languages(languages)
    if pre is not None and not models:
        raise UsageError(f"--pre {pre[:60]}: no MODEL is named", "name a MODEL, or leave it out")
    if plot is not None and not every:
        raise UsageError("--plot: only the built-in table can be plotted", "add --all")
    if listed or models == (_LIST,):
        _alone("--list", models if listed else (), request, target_name, every)
        _print_list(as_json)
    elif every:
        _alone("--all", models, request, target_name, listed)
        _print_all(plot, as_json)
    elif target_name is not None:
        if request.asked:
            raise UsageError("--target chooses the sizes itself", "omit --ratio and the sizes")
        quiet_libraries(*models)
        _print_fits(models, target_name, quant, context, pre=pre, as_json=as_json)
    elif len(models) == 1:
        quiet_libraries(*models)
        (found,) = _opened(models, languages, pre)
        _print_one(found, request, as_json)
    else:
        what = f"{len(models)} models without --target" if models else "MODEL is missing"
        raise UsageError(f"inspect: {what}", "give one MODEL, or add --target NAME, --all or --list")


def _alone(option: str, models: tuple[str, ...], request: Request, target: str | None, other: bool) -> None:
    from compact.base.errors import UsageError

    if models or request.asked or target is not None or other:
        raise UsageError(f"{option} cannot be combined with a model, size or target", "omit the others")


def _opened(models: tuple[str, ...], languages: tuple[str, ...] = (), pre: str | None = None) -> list[Inspected]:
    from compact.base.cache import open_cache
    from compact_edge.inspect.inspection import inspect_model
    from compact_edge.terminal.console import Console

    console = Console()
    with open_cache() as cache:
        return [inspect_model(model, cache, console, languages, pre) for model in models]


def _print_one(found: Inspected, request: Request, as_json: bool) -> None:
    from compact_edge.inspect.inspection import as_dict, report
    from compact_edge.terminal.console import print_json

    if as_json:
        print_json(as_dict(found, request))
    else:
        click.echo(report(found, request))


def _print_list(as_json: bool) -> None:
    from dataclasses import asdict

    from compact.architectures.published import published_models
    from compact_edge.inspect.parameter_table import listing
    from compact_edge.terminal.console import print_json

    if as_json:
        print_json([asdict(model) for model in published_models()])
    else:
        click.echo(listing())


def _print_all(plot: Path | None, as_json: bool) -> None:
    from compact_edge.inspect.parameter_table import counted_models, overview
    from compact_edge.terminal.console import print_json

    counted = counted_models()
    if plot is not None:
        from compact_edge.inspect.parameter_plot import write_plot

        write_plot(plot, counted)
    if as_json:
        print_json([model.as_dict() for model in counted])
    else:
        click.echo(overview(counted))


def _print_fits(
    models: tuple[str, ...], target: str, quant: str | None, context: int | None, *, pre: str | None, as_json: bool
) -> None:
    from compact_edge.inspect.device_fit import check_target, fit_model, report
    from compact_edge.inspect.parameter_table import inspected_table
    from compact_edge.terminal.console import print_json
    from targets.profile import load_profile

    profile = load_profile(target)
    check_target(profile, quant)
    found = _opened(models, pre=pre) if models else inspected_table()
    fits = [fit_model(model, profile, quant, context) for model in found]
    if as_json:
        print_json({"target": profile.as_dict(), "models": [fit.as_dict() for fit in fits]})
    else:
        click.echo(report(fits, profile, context))
