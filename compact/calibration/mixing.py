"""Combine several calibration texts: equal shares, and an even order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def equal_shares(grow: Sequence[Callable[[int], int]], total: int) -> list[int]:
    """Divide `total` equally among sources.

    A source that is too short gives all it has, and the others share the rest.

    Args:
        grow: one function per source. It takes a wanted amount and returns how much of it the source has. Calls for the
            same source have increasing amounts.
        total: the wanted sum.

    Returns:
        The amount of each source. Their sum is less than `total` only if all sources are too short.
    """
    given = [0] * len(grow)
    longer = list(range(len(grow)))
    while longer and sum(given) < total:
        short = sum(given[source] for source in range(len(grow)) if source not in longer)
        each, rest = divmod(total - short, len(longer))
        requested = {source: each + (place < rest) for place, source in enumerate(longer)}
        for source, wanted in requested.items():
            given[source] = grow[source](wanted)
        longer = [source for source in longer if given[source] == requested[source]]
    return given


def interleave(lists: Sequence[Sequence[T]]) -> list[T]:
    """Merge lists and spread each evenly over the result, so that every prefix has all lists in proportion."""
    places = [
        ((2 * at + 1) / (2 * len(items)), source, at) for source, items in enumerate(lists) for at in range(len(items))
    ]
    return [lists[source][at] for _, source, at in sorted(places)]
