"""The options that say how much to remove: sizes, and limits of the artifact."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from compact.pruning.budget_options import MinSpeed


def _coverage(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    from compact.pruning.budget_options import parse_coverage

    return None if value is None else parse_coverage(value)


def _loss(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    from compact.pruning.budget_options import parse_loss

    return None if value is None else parse_loss(value)


def _speed(_: click.Context, __: click.Parameter, value: str | None) -> MinSpeed | None:
    from compact.pruning.budget_options import parse_speed

    return None if value is None else parse_speed(value)


SIZES = (
    click.option("--ratio", type=float, help="Share of all parameters to remove (default: 0.2)."),
    click.option("--vocab-size", type=int, help="Final vocab_size, including special tokens."),
    click.option(
        "--vocab-coverage",
        metavar="SHARE",
        callback=_coverage,
        help="Instead of --vocab-size: use the smallest vocabulary that keeps this share of the languages' tokens "
        "whole, such as 99.9%.",
    ),
    click.option("--intermediate-size", type=int, help="Final intermediate_size of every layer."),
)
# `prune` writes no artifact. There, `--fit` is the size of a later export of the type `--quant`.
FIT = (
    click.option(
        "--fit",
        metavar="SIZE",
        help="Maximum size of the GGUF file of type --quant, such as 400MB or 60MiB. Searches the sizes.",
    ),
)
LIMITS = (
    click.option(
        "--fit",
        metavar="SIZE",
        help="Maximum size of the artifact's files, such as 400MB or 60MiB. Searches sizes and type together (with "
        "--quant: sizes only).",
    ),
    click.option(
        "--max-memory",
        metavar="SIZE",
        help="Maximum resident memory of the running model, with a key-value cache of the target's context_length.",
    ),
    click.option(
        "--min-speed",
        metavar="SPEED",
        callback=_speed,
        help="Minimum decode speed on the target's device, in characters/s, or tokens/s with the suffix t/s.",
    ),
    click.option(
        "--max-loss",
        metavar="SHARE",
        callback=_loss,
        help="Find the smallest file whose bits per byte are at most this share above the unpruned model's, such as "
        "3%.",
    ),
)
SPLIT = (
    click.option(
        "--split",
        metavar="auto|proportional|V:FFN",
        help="How to split the cut between vocabulary and FFN. auto: search by bits per byte. proportional: the share "
        "of its parameters that the vocabulary loses is twice the FFN's. 70:30: fixed shares (default: for --ratio the "
        "smallest loss, predicted from a few measured sizes; auto with a limit such as --fit).",
    ),
    click.option(
        "--search-minutes",
        type=float,
        help="Time limit of the search, in minutes. An interrupted search continues from its cached results.",
    ),
)
