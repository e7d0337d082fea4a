"""The words of a budget: sizes (`--fit 400MB`), `--split 70:30`, and which of them exclude each other."""

from __future__ import annotations

import re
from typing import Final, Literal, Protocol

from compact.base.errors import BudgetError, UsageError
from compact.pruning.budget import Shares

AUTO: Final = "auto"
_SPLIT = re.compile(r"(\d{1,9}(?:\.\d{1,6})?):(\d{1,9}(?:\.\d{1,6})?)", re.ASCII)
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?) ?([KMGT]?)(I?)B?", re.ASCII)
_NUMBER = re.compile(r"\d{1,3}(?:\.\d{1,9})?|\.\d{1,9}", re.ASCII)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


class BudgetOptions(Protocol):
    """The part of `compact.pruning.options.PruneOptions` that says how much goes."""

    @property
    def ratio(self) -> float | None: ...
    @property
    def vocab_size(self) -> int | None: ...
    @property
    def vocab_coverage(self) -> float | None: ...
    @property
    def intermediate_size(self) -> int | None: ...
    @property
    def fit_bytes(self) -> int | None: ...
    @property
    def split(self) -> str | None: ...


def parse_split(text: str) -> Shares | Literal["auto"]:
    """`auto`, or the shares of the removed parameters that vocabulary and FFN give (`70:30`). Raises UsageError."""
    if text.strip().lower() == AUTO:
        return AUTO
    match = _SPLIT.fullmatch(text.strip())
    vocabulary, ffn = (float(match[1]), float(match[2])) if match else (0.0, 0.0)
    if vocabulary + ffn <= 0:
        raise UsageError(
            f"--split {text[:40]!r}: no split",
            "write auto, or what vocabulary and FFN give of the removed parameters, such as 70:30",
        )
    return Shares(vocabulary / (vocabulary + ffn), text.strip())


def parse_size(text: str, option: str = "--fit", *, least: int = 1) -> int:
    """Bytes of `400MB`, `400M` (powers of ten) or `60MiB` (powers of 1024), in any case.

    Args:
        text: what the user wrote.
        option: where, for the message.
        least: bytes that are needed.

    Raises:
        UsageError: not a size, or a smaller one.
    """
    match = _SIZE.fullmatch(text.strip().upper())
    if match is None or (match[3] and not match[2]):
        raise UsageError(f"{option} {text[:40]!r}: not a size", "write it as 400MB, 1.5GB or 60MiB")
    size = int(float(match[1]) * (1024 if match[3] else 1000) ** _POWERS[match[2]])
    if size < least:
        problem = "no bytes" if least == 1 else f"less than {least / 1e6:g} MB"
        raise UsageError(f"{option} {text[:40]!r}: {problem}", "write it as 400MB, 1.5GB or 60MiB")
    return size


def parse_coverage(text: str) -> float:
    """A share of `99.9%` or `0.999`, above 0 and up to 1. Raises UsageError."""
    word = text.strip()
    match = _NUMBER.fullmatch(word.removesuffix("%"))
    share = float(match[0]) / (100 if word.endswith("%") else 1) if match else 0.0
    if not 0 < share <= 1:
        raise UsageError(
            f"--vocab-coverage {text[:40]!r}: not a share above 0% and up to 100%", "write it as 99.9% or 0.999"
        )
    return share


def has_explicit_sizes(options: BudgetOptions) -> bool:
    """Whether the user gave a final size, or the coverage that one of them follows from."""
    return any(size is not None for size in (options.vocab_size, options.vocab_coverage, options.intermediate_size))


def check_budget(options: BudgetOptions) -> None:
    """Refuse budgets that exclude each other, before a model is opened.

    Raises:
        UsageError: two budgets, a split beside explicit sizes, or words that are no split.
        BudgetError: a ratio outside 0 to 1.
    """
    explicit = has_explicit_sizes(options)
    if options.vocab_size is not None and options.vocab_coverage is not None:
        raise UsageError("--vocab-size and --vocab-coverage exclude each other", "give one of them")
    given = [
        name
        for name, is_given in (
            ("--ratio", options.ratio is not None),
            ("--fit", options.fit_bytes is not None),
            ("explicit sizes", explicit),
        )
        if is_given
    ]
    if len(given) > 1:
        raise UsageError(f"{given[0]} and {given[1]} exclude each other", "give one of them")
    if options.ratio is not None and not 0.0 < options.ratio < 1.0:
        raise BudgetError(
            f"--ratio {options.ratio:g}: out of range", "give the share of parameters to remove, between 0 and 1"
        )
    if options.split is not None:
        if explicit:
            raise UsageError("--split and explicit sizes exclude each other", "leave one of them out")
        parse_split(options.split)


def is_searched(options: BudgetOptions) -> bool:
    """Whether the sizes are found by measuring: `--split auto`, which is the default of `--fit`."""
    if options.split is None:
        return options.fit_bytes is not None
    return parse_split(options.split) == AUTO
