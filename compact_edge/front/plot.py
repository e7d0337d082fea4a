"""Plots sizes and types by file size and loss: the front, the unpruned model in every type, and what was measured."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from compact_edge.front.describe import chosen_of, is_cut, limit_words, place_on_front
from compact_edge.terminal.plot import Panel, Series, document
from runtime_bench.report.svg import Point

FRONT_SVG = "front.svg"
# Larger losses are not drawn: such a file is of no use.
LARGEST_LOSS = 1.0
_FAMILIES = ("8 bits and more", "6 bits", "5 bits", "4 bits", "3 bits", "2 bits and fewer", "mixes", "other types")
# Style of each family (`compact_edge.terminal.plot`).
_STYLES = (7, 3, 2, 0, 1, 6, 5, 4)
_LINE = 4

Entry = Mapping[str, Any]


def family_of(type_name: str) -> int:
    """Return the index of the family of a type in the legend, from the bits in its name."""
    first = type_name.split(",")[0].lower()
    if first.startswith("mix"):
        return 6
    bits = re.search(r"\d+", first)
    if bits is None:
        return 7
    return min(5, max(0, {8: 0, 7: 0}.get(int(bits[0]), 7 - int(bits[0]))))


def search_svg(search: Mapping[str, Any], model: str) -> str:
    """Return the plot of a build's search (`compact_edge.front.record.front_record`)."""
    chosen = chosen_of(search)
    unpruned = [] if search["no_cut"] is None else [search["no_cut"]]
    points = unique([*search["front"], *search["measured"], *unpruned])
    title = f"{model}: sizes and types for {limit_words(search['limits'])}"
    panels = [loss_panel(title, search["front"], points, search["unpruned"], marked=(chosen, "chosen"))]
    if all(point["characters_per_second"] is not None for point in points):
        panels.append(
            speed_panel("characters/s", points, search["unpruned"], lambda point: float(point["characters_per_second"]))
        )
    return document(panels, title, f"Chosen: {tip(chosen)}. {place_on_front(search)}")


def loss_panel(
    title: str,
    front: Sequence[Entry],
    points: Sequence[Entry],
    whole: Entry,
    *,
    marked: tuple[Entry, str] | None = None,
) -> Panel:
    """Return the plot of loss by file size. Losses above `LARGEST_LOSS` are left out, unless all are.

    Args:
        title: title of the plot.
        front: points of the front, which a line joins.
        points: all points to draw.
        whole: sizes of the unpruned model.
        marked: a point and its label.
    """

    def place(point: Entry) -> Point:
        return Point(point["bytes"] / 1e6, 100 * point["loss"])

    line = drawable(front)
    joined = Series("front: no file of this size is predicted to lose less", tuple(map(place, line)), (), _LINE,
                    marks=False)  # fmt: skip
    labels = () if marked is None else ((place(marked[0]), marked[1]),)
    return Panel(
        title,
        "MB",
        "bits per byte, % above the unpruned float model",
        (joined, *_series(drawable(points), whole, place)),
        labels,
    )


def speed_panel(label: str, points: Sequence[Entry], whole: Entry, speed_of: Callable[[Entry], float]) -> Panel:
    """Return the plot of estimated decode speed by file size, for the points of `loss_panel`."""

    def place(point: Entry) -> Point:
        return Point(point["bytes"] / 1e6, speed_of(point))

    return Panel("Estimated decode speed", "MB", label, _series(drawable(points), whole, place))


def drawable(points: Sequence[Entry]) -> Sequence[Entry]:
    """Return the points whose loss is small enough to draw, or all points if there are none."""
    return [point for point in points if point["loss"] <= LARGEST_LOSS] or points


def unique(points: Sequence[Entry]) -> list[Entry]:
    """Return the points without duplicates of size and type, smallest file first."""
    found = {(point["type"], point["vocab_size"], point["intermediate_size"]): point for point in points}
    return sorted(found.values(), key=lambda point: int(point["bytes"]))


def tip(point: Entry) -> str:
    """Return the tooltip of a point."""
    how = "measured" if point["measured"] else "predicted"
    return (
        f"{point['type']}, {point['vocab_size']} / {point['intermediate_size']}, {point['bytes'] / 1e6:.1f} MB: "
        f"{point['loss']:+.1%} ({how})"
    )


def _series(points: Sequence[Entry], whole: Entry, place: Callable[[Entry], Point]) -> tuple[Series, ...]:
    """Return a series for each family of types, hollow for the unpruned model and ringed for measured files."""
    found = []
    for family, name in enumerate(_FAMILIES):
        listed = False
        for pruned in (True, False):
            for measured in (False, True):
                some = [
                    point
                    for point in points
                    if (family_of(point["type"]), is_cut(point, whole), point["measured"]) == (family, pruned, measured)
                ]
                if not some:
                    continue
                found.append(
                    Series(
                        name,
                        tuple(map(place, some)),
                        tuple(map(tip, some)),
                        _STYLES[family],
                        joined=False,
                        hollow=not pruned,
                        ring=measured,
                        in_legend=not listed,
                    )
                )
                listed = True
    return tuple(found)
