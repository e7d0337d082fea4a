"""Equal shares of several sources, and their order: what a calibration of more than one text is put together by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def equal_shares(grow: Sequence[Callable[[int], int]], total: int) -> list[int]:
    """How much each source gives, `total` in all where the sources have it.

    Sources give equal shares. One that is too short gives what it has, and the others share what is missing.

    Args:
        grow: one function a source: asked for n, it says how much of n the source has. It is asked for growing n.
        total: what all give together.
    """
    given = [0] * len(grow)
    longer = list(range(len(grow)))
    while longer and sum(given) < total:
        short = sum(given[source] for source in range(len(grow)) if source not in longer)
        each, rest = divmod(total - short, len(longer))
        asked = {source: each + (place < rest) for place, source in enumerate(longer)}
        for source, wanted in asked.items():
            given[source] = grow[source](wanted)
        longer = [source for source in longer if given[source] == asked[source]]
    return given


def interleave(lists: Sequence[Sequence[T]]) -> list[T]:
    """All items, each list in its order and spread evenly, so that any beginning holds every list by its share."""
    places = [
        ((2 * at + 1) / (2 * len(items)), source, at) for source, items in enumerate(lists) for at in range(len(items))
    ]
    return [lists[source][at] for _, source, at in sorted(places)]
