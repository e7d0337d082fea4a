"""Options that several commands share, such as the budget and the calibration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from compact.pruning.methods import DEFAULT_METHOD, METHODS, method_named, methods_help
from compact.pruning.recover_options import RECOVERIES, TRAINED
from compact_edge import budget_flags

if TYPE_CHECKING:
    from compact.pruning.options import PruneOptions
    from compact.pruning.recover_options import RecoverOptions
    from exporters.format_values import Flag

Function = TypeVar("Function", bound=Callable[..., Any])

FILE = click.Path(dir_okay=False, path_type=Path)
DIRECTORY = click.Path(file_okay=False, path_type=Path)


class SectionOption(click.Option):
    """An option that names its own heading in the help."""

    def __init__(self, *args: Any, section: str | None = None, **values: Any) -> None:
        super().__init__(*args, **values)
        self.section = section


class GroupedCommand(click.Command):
    """A command whose help lists its own options first, then the shared options with one heading per subject."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options. Those without a subject come first."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": [], **{title: [] for title in _SUBJECTS}}
        titles = {each.name: title for title, group in _SUBJECTS.items() for each in _parameters(group)}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                section = parameter.section if isinstance(parameter, SectionOption) else None
                title = section or titles.get(parameter.name or "", "Options")
                sections.setdefault(title, []).append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class QuantCommand(GroupedCommand):
    """A command whose `--quant list` prints the list of types and exits, regardless of the other arguments."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Print the list if the user asked for it; otherwise parse as usual."""
        requested = any(pair == ("--quant", "list") for pair in pairwise(args)) or "--quant=list" in args
        if requested:
            from compact_edge.terminal.quant_table import print_quants

            print_quants(as_json="--json" in args)
            ctx.exit(0)
        return super().parse_args(ctx, args)


def split_codes(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Split codes at commas, so that `en,de` equals `--languages en --languages de`."""
    return tuple(code.strip() for value in values for code in value.split(",") if code.strip())


_RANKING = (
    click.option(
        "--pad-vocab-to-multiple-of",
        type=click.IntRange(1, 4096),
        default=1,
        show_default=True,
        help="Make the final vocab_size a multiple of this.",
    ),
    click.option(
        "--languages",
        multiple=True,
        metavar="CODES",
        callback=split_codes,
        help="Keep the vocabulary of these languages: BCP 47 codes, and `code` for source code, such as en,de,code "
        "(default: rank by the scripts of the calibration text). Needs the extra `languages`.",
    ),
    click.option(
        "--vocab-rank",
        type=click.Choice(["auto", "merges"]),
        default="auto",
        show_default=True,
        help="auto: rank tokens by --languages, or by the scripts of the calibration text. merges: by merge order "
        "alone, as in the paper.",
    ),
    click.option("--vocab-corpus", type=FILE, help="Also rank tokens by their frequency in this text."),
    click.option(
        "--vocab-floor",
        type=click.IntRange(0),
        help="With --vocab-corpus: number of droppable tokens to rank without the corpus (default: half of them; 0: "
        "none).",
    ),
    click.option(
        "--keep-tokens", type=FILE, help="File of tokens to keep, one per line, spelled as in tokenizer.json."
    ),
    click.option(
        "--method",
        type=click.Choice(list(METHODS)),
        default=DEFAULT_METHOD,
        show_default=True,
        help=methods_help(),
    ),
    click.option(
        "--repair-tokens",
        type=click.Choice(["final", "common"]),
        help="Tokens of the calibration text that --method repair fits to. final: those of the pruned tokenizer. "
        "common: those of the original tokenizer that are not dropped (default: final).",
    ),
)
_CALIBRATION = (
    click.option(
        "--calibration",
        multiple=True,
        help="Calibration text: a text, jsonl or parquet file; a Hub data set (org/name[@revision][:config[:split]]); "
        "or stdlib, stdlib-prose, self (text that the model writes). Repeat to mix several in equal shares (default: "
        "stdlib for tiny, allenai/c4 for a model from the Hub, otherwise stdlib-prose).",
    ),
    click.option(
        "--calibration-tokens",
        type=int,
        help="Size of the calibration set in tokens (default: 32768; 524288 for a Hub data set; 8192 for tiny).",
    ),
    click.option("--sequence-length", type=int, help="Tokens per sequence (default: 2048, or the model's maximum)."),
    click.option(
        "--seed",
        type=int,
        default=0,
        show_default=True,
        help="Random seed for the calibration set and for the order of the training text.",
    ),
)
_COMPUTE = (
    click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda", "mps"]),
        default="auto",
        show_default=True,
        help="Device for calibration, repair and training. auto: cuda if available, otherwise cpu.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        default="auto",
        show_default=True,
        help="Compute dtype. Trained weights stay float32. auto: float32 on a CPU, otherwise bfloat16.",
    ),
    click.option(
        "--batch-size", type=click.IntRange(1), default=1, show_default=True, help="Sequences per calibration batch."
    ),
)


_RECOVERY = (
    click.option(
        "--recover",
        type=click.Choice(RECOVERIES),
        help="Train the pruned model on plain text, with the unpruned model as teacher. Not part of COMPACT.",
    ),
    click.option(
        "--recover-text",
        multiple=True,
        help="Training text, with the same values as --calibration (default: that of the calibration). Repeat to mix "
        "several in equal shares.",
    ),
    click.option("--recover-tokens", type=click.IntRange(1), help="Training budget in tokens."),
    click.option(
        "--recover-minutes",
        type=float,
        help="Training budget in minutes (default: 30 without --recover-tokens). With both, training stops at the "
        "first limit.",
    ),
    click.option(
        "--recover-until",
        help="Stop training as soon as held-out text costs at most this share more than in the unpruned model, for "
        "example 2%. The budget still applies.",
    ),
    click.option(
        "--learning-rate",
        type=float,
        help="Maximum learning rate of all weights (default: a share of the root mean square of each weight matrix).",
    ),
    click.option(
        "--train",
        type=click.Choice(TRAINED),
        help="Weights to train. embeddings: only the embedding and the LM head (default: all).",
    ),
)


_SUBJECTS = {
    "Sizes": (*budget_flags.SIZES, *budget_flags.LIMITS, *budget_flags.SPLIT),
    "Vocabulary and channels": _RANKING,
    "Calibration": _CALIBRATION,
    "Recovery": _RECOVERY,
    "Computation": _COMPUTE,
}


def pruning_choices() -> dict[str, tuple[str, ...]]:
    """Return the shared options with a fixed set of values: parameter name -> allowed values."""
    parameters = _parameters(tuple(option for group in _SUBJECTS.values() for option in group))
    return {p.name or "": tuple(p.type.choices) for p in parameters if isinstance(p.type, click.Choice)}


def _parameters(options: tuple[Callable[[Any], Any], ...]) -> list[click.Parameter]:
    command = click.Command("", params=[])
    for option in options:
        option(command)
    return command.params


def _apply(options: tuple[Callable[[Function], Function], ...], function: Function) -> Function:
    for option in reversed(options):
        function = option(function)
    return function


def pre_option(function: Function) -> Function:
    """Add `--pre`."""
    return click.option(
        "--pre",
        metavar="NAME",
        help="Name of the pre-tokenizer in llama.cpp, such as llama-bpe. For a GGUF file that does not name it, or a "
        "checkpoint whose pre-tokenizer has no known name.",
    )(function)


def budget_options(function: Function) -> Function:
    """Add the options that say what to remove without making an artifact: sizes, ranking and method."""
    return _apply((*budget_flags.SIZES, *budget_flags.FIT, *budget_flags.SPLIT, *_RANKING), function)


def artifact_budget_options(function: Function) -> Function:
    """Add the options of `budget_options`, and the limits of the artifact."""
    return _apply((*budget_flags.SIZES, *budget_flags.LIMITS, *budget_flags.SPLIT, *_RANKING), function)


def ranking_options(function: Function) -> Function:
    """Add the options that say how tokens and channels are ranked."""
    return _apply(_RANKING, function)


def calibration_options(function: Function) -> Function:
    """Add the options for the calibration set."""
    return _apply(_CALIBRATION, function)


def compute_options(function: Function) -> Function:
    """Add the options for device, dtype and batch size."""
    return _apply(_COMPUTE, function)


def recovery_options(function: Function) -> Function:
    """Add the options for training the pruned model."""
    return _apply(_RECOVERY, function)


def format_options(command: str) -> Callable[[Function], Function]:
    """Add the flags of the export formats for `command` (`build` or `export`)."""

    def decorate(function: Function) -> Function:
        return _apply(tuple(_option(flag, command) for flag in _flags(command)), function)

    return decorate


def _flags(command: str) -> list[Flag]:
    """Return the flags of all formats for a command, without duplicates, because formats may share one."""
    from exporters.registry import formats

    flags = {flag.name: flag for each in reversed(formats()) for flag in reversed(each.flags)}
    return [flag for flag in reversed(flags.values()) if command in flag.commands]


def _option(flag: Flag, command: str) -> Callable[[Any], Any]:
    kind = {"is_flag": True} if flag.kind is bool else {"type": FILE if flag.kind is Path else flag.kind}
    return click.option(
        flag.name,
        cls=SectionOption,
        section=flag.section,
        multiple=flag.multiple,
        help=flag.export_help if command == "export" and flag.export_help is not None else flag.help,
        **kind,
    )


def format_choices(values: Mapping[str, Any], command: str) -> dict[str, Any]:
    """Return the parsed values of `format_options`. Raises UsageError if a value, such as a size, is invalid."""
    return {
        flag.key: flag.parse(values[flag.key]) if flag.parse and values[flag.key] is not None else values[flag.key]
        for flag in _flags(command)
    }


def prune_options(values: dict[str, Any], *, channel_grid: int = 1) -> PruneOptions:
    """Return `PruneOptions` from the values of the shared options.

    Args:
        values: parameter names and values. Other keys are ignored. `PruneOptions` has the defaults of missing ones.
        channel_grid: `intermediate_size` is kept a multiple of this.

    Raises:
        UsageError: two options exclude each other, an option belongs to a step that is off, or a value is invalid.
    """
    from dataclasses import fields

    from compact.base.errors import UsageError
    from compact.pruning.budget_options import check_budget, parse_size
    from compact.pruning.options import PruneOptions
    from compact.pruning.ranking import check_ranking

    names = {field.name for field in fields(PruneOptions)} & values.keys() - {"recover"}
    fit, memory = values.get("fit"), values.get("max_memory")
    fitted_to = values.get("repair_tokens")
    if fitted_to is None:
        names -= {"repair_tokens"}
    elif "repair_tokens" not in method_named(values.get("method", DEFAULT_METHOD)).options:
        raise UsageError(f"--repair-tokens {fitted_to}: applies only to --method repair", "add --method repair")
    options = PruneOptions(
        **{name: values[name] for name in names},
        fit_bytes=None if fit is None else parse_size(fit),
        max_memory_bytes=None if memory is None else parse_size(memory, "--max-memory"),
        channel_grid=channel_grid,
        recover=_recover_options(values),
    )
    check_budget(options)
    check_ranking(options)
    return options


def _recover_options(values: dict[str, Any]) -> RecoverOptions | None:
    from compact.base.errors import UsageError
    from compact.pruning.budget_options import parse_loss
    from compact.pruning.recover_options import RecoverOptions

    until = values.get("recover_until")
    # For a missing value, `RecoverOptions` has the default.
    options: dict[str, tuple[str, Any]] = {
        "text": ("--recover-text", values.get("recover_text") or None),
        "tokens": ("--recover-tokens", values.get("recover_tokens")),
        "minutes": ("--recover-minutes", values.get("recover_minutes")),
        "until": ("--recover-until", None if until is None else parse_loss(str(until), "--recover-until")),
        "learning_rate": ("--learning-rate", values.get("learning_rate")),
        "train": ("--train", values.get("train")),
    }
    given = {name: (option, value) for name, (option, value) in options.items() if value is not None}
    if values.get("recover") is None:
        for option, _ in given.values():
            raise UsageError(f"{option}: applies only with --recover", "add --recover distill")
        return None
    chosen = RecoverOptions(method=values["recover"], **{name: value for name, (_, value) in given.items()})
    for name in chosen.text:
        if chosen.text.count(name) > 1:
            raise UsageError(f"--recover-text {name}: named twice", "name it once; all texts have equal shares")
    return chosen
