"""Parse the budget options (`--fit 400MB`, `--split 70:30`, ...) and check which of them exclude each other."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from compact.base.errors import BudgetError, UsageError
from compact.pruning.budget import Shares

AUTO: Final = "auto"
PROPORTIONAL: Final = "proportional"
CHARACTERS: Final = "characters"
TOKENS: Final = "tokens"
_SPLIT = re.compile(r"(\d{1,9}(?:\.\d{1,6})?):(\d{1,9}(?:\.\d{1,6})?)", re.ASCII)
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?) ?([KMGT]?)(I?)B?", re.ASCII)
_NUMBER = re.compile(r"\d{1,3}(?:\.\d{1,9})?|\.\d{1,9}", re.ASCII)
_SPEED = re.compile(r"(\d{1,9}(?:\.\d{1,6})?|\.\d{1,6}) ?(c|characters|t|tokens)?(?(2)/s)", re.ASCII)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


@dataclass(frozen=True)
class MinSpeed:
    """`--min-speed`: the minimum decode speed.

    Attributes:
        value: units per second.
        unit: `characters` compares vocabularies fairly, because a pruned vocabulary makes tokens shorter.
    """

    value: float
    unit: Literal["characters", "tokens"]


class BudgetOptions(Protocol):
    """The fields of `compact.pruning.options.PruneOptions` that say how much to remove."""

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
    def max_memory_bytes(self) -> int | None: ...
    @property
    def max_loss(self) -> float | None: ...
    @property
    def min_speed(self) -> MinSpeed | None: ...
    @property
    def search_minutes(self) -> float | None: ...
    @property
    def split(self) -> str | None: ...


def parse_split(text: str) -> Shares | Literal["auto", "proportional"]:
    """Parse `--split`: `auto`, `proportional`, or the shares of vocabulary and FFN in the removed parameters (`70:30`).

    Raises:
        UsageError: the text is none of them.
    """
    word = text.strip().lower()
    if word == AUTO:
        return AUTO
    if word == PROPORTIONAL:
        return PROPORTIONAL
    match = _SPLIT.fullmatch(text.strip())
    vocabulary, ffn = (float(match[1]), float(match[2])) if match else (0.0, 0.0)
    if vocabulary + ffn <= 0:
        raise UsageError(
            f"--split {text[:40]!r}: expected `auto`, `proportional` or `V:FFN`",
            "V and FFN are the shares of vocabulary and FFN in the removed parameters, for example 70:30",
        )
    return Shares(vocabulary / (vocabulary + ffn), text.strip())


def parse_size(text: str, option: str = "--fit", *, least: int = 1) -> int:
    """Parse a size such as `400MB`, `400M` (powers of ten) or `60MiB` (powers of 1024). Case does not matter.

    Args:
        text: the option's value as the user wrote it.
        option: name of the option, for the message.
        least: smallest accepted size, in bytes.

    Returns:
        The size in bytes.

    Raises:
        UsageError: the text is not a size, or the size is below `least`.
    """
    match = _SIZE.fullmatch(text.strip().upper())
    if match is None or (match[3] and not match[2]):
        raise UsageError(f"{option} {text[:40]!r}: not a size", "write it as 400MB, 1.5GB or 60MiB")
    size = int(float(match[1]) * (1024 if match[3] else 1000) ** _POWERS[match[2]])
    if size < least:
        problem = "the size must not be 0" if least == 1 else f"less than {least / 1e6:g} MB"
        raise UsageError(f"{option} {text[:40]!r}: {problem}", "write it as 400MB, 1.5GB or 60MiB")
    return size


def parse_coverage(text: str) -> float:
    """Parse a share such as `99.9%` or `0.999`. It must be above 0 and at most 1. Raises UsageError."""
    share = _share(text)
    if not 0 < share <= 1:
        raise UsageError(
            f"--vocab-coverage {text[:40]!r}: expected a share above 0% and up to 100%", "write it as 99.9% or 0.999"
        )
    return share


def parse_loss(text: str, option: str = "--max-loss") -> float:
    """Parse a loss: a share such as `3%` or `0.03`. It must be above 0 and below 1. Raises UsageError."""
    share = _share(text)
    if not 0 < share < 1:
        raise UsageError(f"{option} {text[:40]!r}: expected a share above 0% and below 100%", "write it as 3% or 0.03")
    return share


def _share(text: str) -> float:
    """Return a share written as `3%` or `0.03`. Return 0 if the text is not a number."""
    word = text.strip()
    match = _NUMBER.fullmatch(word.removesuffix("%"))
    return float(match[0]) / (100 if word.endswith("%") else 1) if match else 0.0


def parse_speed(text: str) -> MinSpeed:
    """Parse `--min-speed`: `20` or `20c/s` (characters per second), or `8t/s` (tokens per second).

    Units may also be written out: `20characters/s`, `8tokens/s`. Case does not matter.

    Raises:
        UsageError: the text is not a speed, or the speed is 0.
    """
    match = _SPEED.fullmatch(text.strip().lower())
    value = float(match[1]) if match else 0.0
    if match is None or value <= 0:
        raise UsageError(
            f"--min-speed {text[:40]!r}: expected a speed above 0",
            "write 20 for characters/s, or 8t/s for tokens/s",
        )
    return MinSpeed(value, TOKENS if (match[2] or "").startswith("t") else CHARACTERS)


def has_explicit_sizes(options: BudgetOptions) -> bool:
    """Return whether the user gave a final size, or the coverage that determines the vocabulary size."""
    return any(size is not None for size in (options.vocab_size, options.vocab_coverage, options.intermediate_size))


def given_limits(options: BudgetOptions) -> tuple[str, ...]:
    """Return the names of the given limits, such as `--fit`. They may be combined."""
    limits = {
        "--fit": options.fit_bytes,
        "--max-memory": options.max_memory_bytes,
        "--min-speed": options.min_speed,
        "--max-loss": options.max_loss,
    }
    return tuple(name for name, value in limits.items() if value is not None)


def has_limits(options: BudgetOptions) -> bool:
    """Return whether the user gave a limit for the artifact: file size, memory, speed or loss."""
    return bool(given_limits(options))


def check_budget(options: BudgetOptions) -> None:
    """Check that the budget options do not exclude each other. This does not need the model.

    Raises:
        UsageError: there are two budgets, a split together with explicit sizes, an invalid split, a split that the
            limits exclude, or a time limit without a search.
        BudgetError: the ratio is not between 0 and 1.
    """
    explicit = has_explicit_sizes(options)
    limits = given_limits(options)
    if options.vocab_size is not None and options.vocab_coverage is not None:
        raise UsageError("--vocab-size and --vocab-coverage exclude each other", "give one of them")
    given = [
        name
        for name, is_given in (
            ("--ratio", options.ratio is not None),
            *((name, True) for name in limits[:1]),
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
            raise UsageError("--split and explicit sizes exclude each other", "give one of them")
        _check_split(parse_split(options.split), limits)
    if options.search_minutes is not None:
        if not (math.isfinite(options.search_minutes) and options.search_minutes > 0):
            raise UsageError(
                f"--search-minutes {options.search_minutes:g}: must be above 0", "give the time in minutes, such as 30"
            )
        if not is_searched(options):
            raise UsageError(
                "--search-minutes: nothing is searched", "add --split auto, or a limit such as --fit 400MB"
            )


def _check_split(split: Shares | str, limits: tuple[str, ...]) -> None:
    """Raise UsageError if the limits exclude the split. With fixed shares, a file size alone determines the sizes."""
    if split == AUTO or not limits:
        return
    if split == PROPORTIONAL:
        raise UsageError(f"--split {PROPORTIONAL} and {limits[0]} exclude each other", "leave --split out")
    others = [name for name in limits if name != "--fit"]
    if isinstance(split, Shares) and others:
        raise UsageError(f"--split {split.text} and {others[0]} exclude each other", "leave --split out")


def is_searched(options: BudgetOptions) -> bool:
    """Return whether the sizes are found by measurement, as with `--split auto`, the default of all limits."""
    if options.split is None:
        return has_limits(options)
    return parse_split(options.split) == AUTO


def is_predicted(options: BudgetOptions) -> bool:
    """Return whether the sizes for a ratio are chosen by their predicted loss (`compact.search.ratio`)."""
    return options.split is None and not has_limits(options) and not has_explicit_sizes(options)
