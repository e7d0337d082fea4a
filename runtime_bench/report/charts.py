"""The plots of a report, as inline SVG.

Sides differ by colour, by the marker's shape and by the line's dashes: pruned is a filled circle on a solid line,
baseline a hollow square on a dashed one. Coordinates are in units of the view box (`WIDTH` wide).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from runtime_bench.report.svg import (
    CHARACTER,
    WIDTH,
    Frame,
    Point,
    circle,
    line,
    named,
    number,
    ratio_place,
    rect,
    text,
    tick_labels,
    ticks,
    whisker,
)


@dataclass(frozen=True)
class Series:
    """The points of one side, in the order of the line. `kind` is `pruned` or `baseline`."""

    kind: str
    name: str
    points: tuple[Point, ...]


def marker(x: float, y: float, kind: str, tip: str | None = None, radius: float = 4.5) -> str:
    """Return the mark of a side, with a tooltip if `tip` is given."""
    if kind == "pruned":
        return circle(x, y, radius, f"mark {kind}", tip)
    half = radius - 0.5
    return rect(x - half, y - half, 2 * half, 2 * half, f"mark {kind}", tip=tip)


def figure(body: Sequence[str], height: float, identity: str, title: str, description: str) -> str:
    """Return the svg element, with a name and description for screen readers. `identity` is unique in the page."""
    attributes, names = named(title, description, identity)
    return f'<svg viewBox="0 0 {WIDTH} {number(height)}" {attributes}>{names}{"".join(body)}</svg>'


def lines(identity: str, title: str, series: Sequence[Series], x_label: str, y_label: str) -> str:
    """Return lines with markers and whiskers over x; y begins at 0, so that heights compare as the values do."""
    points = [point for one in series for point in one.points]
    largest = max(max(point.y, point.high or 0) for point in points) or 1
    xs = sorted({point.x for point in points})
    spread = (xs[-1] - xs[0]) or 1.0
    frame = Frame((xs[0] - spread * 0.04, xs[-1] + spread * 0.04), ticks(0, largest), x_label, y_label, x_positions=xs)
    for one in series:
        frame.curve(one.points, one.kind)
        for point in one.points:
            tip = f"{one.name}: {point.y:.4g} at {point.x:,.0f}"
            frame.parts.append(marker(frame.x(point.x), frame.y(point.y), one.kind, tip))
    for one in series:
        for point in one.points:
            frame.whisker(point)
    return figure(frame.parts, frame.height, identity, title, _summary(series, x_label, y_label))


def curves(identity: str, title: str, series: Sequence[Series], x_label: str, y_label: str) -> str:
    """Return cumulative curves, y from 0 to 100, a mark at each side's median."""
    points = [point for one in series for point in one.points]
    x_ticks = ticks(min(point.x for point in points), max(point.x for point in points), 6)
    frame = Frame(x_ticks, [0, 25, 50, 75, 100], x_label, y_label)
    for one in series:
        frame.curve(one.points, one.kind)
    for one in series:
        middle = min(one.points, key=lambda point: abs(point.y - 50))
        tip = f"{one.name}: median {middle.x:.4g}"
        frame.parts.append(marker(frame.x(middle.x), frame.y(middle.y), one.kind, tip))
    values_text = "; ".join(
        f"{one.name}: half of the values below {min(one.points, key=lambda p: abs(p.y - 50)).x:.4g}" for one in series
    )
    return figure(frame.parts, frame.height, identity, title, f"{y_label} over {x_label}. {values_text}.")


def scatter(identity: str, title: str, series: Sequence[Series], x_label: str, y_label: str) -> str:
    """Return single points with their names.

    The axes do not begin at 0, so only distances between points are meaningful.
    """
    points = [point for one in series for point in one.points]
    xs, ys = [point.x for point in points], [point.y for point in points]
    x_pad, y_pad = ((max(values) - min(values)) * 0.25 or abs(values[0]) * 0.02 or 1 for values in (xs, ys))
    frame = Frame(
        ticks(max(min(xs) - x_pad, 0), max(xs) + x_pad, 5),
        ticks(max(min(ys) - y_pad, 0), max(ys) + y_pad, 5),
        x_label,
        y_label,
    )
    for one in series:
        for point in one.points:
            x, y = frame.x(point.x), frame.y(point.y)
            after = x < (frame.left + frame.right) / 2
            frame.parts.append(marker(x, y, one.kind, f"{one.name}: {point.x:.4g}, {point.y:.4g}"))
            frame.parts.append(text(x + (10 if after else -10), y + 4, one.name, "start" if after else "end", "name"))
    return figure(frame.parts, frame.height, identity, title, _summary(series, x_label, y_label))


def _summary(series: Sequence[Series], x_label: str, y_label: str) -> str:
    """Return the values of a plot in words."""
    sides = "; ".join(
        f"{one.name}: " + ", ".join(f"{point.y:.4g} at {point.x:.4g}" for point in one.points) for one in series
    )
    return f"{y_label} by {x_label}. {sides}."


@dataclass(frozen=True)
class Bar:
    """One bar of a group, with the interval of its median and its value as text."""

    kind: str
    name: str
    value: float
    words: str
    low: float | None = None
    high: float | None = None


def bars(identity: str, title: str, groups: Sequence[tuple[str, Sequence[Bar]]], x_label: str) -> str:
    """Return horizontal bars from 0, in groups.

    A group's name is above its bars, and each value is at the end of its bar.
    """
    every = [bar for _, group in groups for bar in group]
    room = max(len(bar.words) for bar in every) * CHARACTER + 12
    left, right = 4.0, WIDTH - room
    x_ticks = ticks(0, max(max(bar.value, bar.high or 0) for bar in every) or 1, 4)

    def x(value: float) -> float:
        return left + value / x_ticks[-1] * (right - left)

    y, parts = 10.0, list[str]()
    for name, group in groups:
        y += 14
        parts.append(text(left, y, name, kind="name"))
        y += 6
        for bar in group:
            parts.append(
                rect(left, y, max(x(bar.value) - left, 1), 14, f"bar {bar.kind}", tip=f"{bar.name}: {bar.words}")
            )
            end = x(bar.value)
            if bar.low is not None and bar.high is not None:
                end = max(end, x(bar.high))
                parts += whisker(x(bar.low), x(bar.high), y + 7, "whisker ink", half=3)
            parts.append(text(end + 6, y + 11, bar.words, kind="value"))
            y += 17
        y += 3
    bottom = y + 4
    axis = [line(x(value), 12, x(value), bottom, "grid") for value in x_ticks]
    labels = [
        text(x(value), bottom + 16, label, "start" if index == 0 else "middle")
        for index, (value, label) in enumerate(zip(x_ticks, tick_labels(x_ticks), strict=True))
    ]
    foot = [line(left, bottom, right, bottom, "base"), text((left + right) / 2, bottom + 36, x_label, "middle", "axis")]
    values_text = "; ".join(
        f"{name}: " + ", ".join(f"{bar.name} {bar.words}" for bar in group) for name, group in groups
    )
    return figure([*axis, *parts, *foot, *labels], bottom + 44, identity, title, f"{values_text}.")


def interval(low: float | None, middle: float, high: float | None, kind: str, reach: float) -> str:
    """Return a ratio on a logarithmic axis around 1, for a table's cell.

    1/reach is at the left end, reach at the right.
    """
    width, height = 150.0, 20.0

    def x(value: float) -> float:
        return ratio_place(value, reach, width / 2, width / 2 - 7)

    parts = [line(width / 2, 0, width / 2, height, "one")]
    if low is not None and high is not None:
        parts += whisker(x(low), x(high), 10, f"reach {kind}")
    parts.append(circle(x(middle), 10, 3.6, f"dot {kind}"))
    return (
        f'<svg class="interval" viewBox="0 0 {number(width)} {number(height)}" aria-hidden="true">'
        + "".join(parts)
        + "</svg>"
    )


@dataclass(frozen=True)
class RatioRow:
    """One run's ratio with its interval; `tone` is `good`, `bad` or `calm`."""

    name: str
    note: str
    words: str
    median: float
    low: float | None
    high: float | None
    tone: str


_FACTORS = (1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 100.0)


def ratios(identity: str, title: str, rows: Sequence[RatioRow], x_label: str) -> str:
    """Return ratios on a logarithmic axis around 1, one per row. 1/2 and 2 are equally far from the middle."""
    ends = [end for row in rows for end in (row.low, row.median, row.high) if end is not None]
    largest = max(math.exp(min(abs(math.log(end)), 4.5)) for end in ends)
    reach = next((factor for factor in _FACTORS if factor >= largest), _FACTORS[-1])
    left, right, bottom = 16.0, WIDTH - 16.0, 10.0 + 62 * len(rows)

    def x(value: float) -> float:
        return ratio_place(value, reach, (left + right) / 2, (right - left) / 2)

    parts = []
    for value in (1 / reach, 1 / math.sqrt(reach), 1.0, math.sqrt(reach), reach):
        parts.append(line(x(value), 6, x(value), bottom, "one" if value == 1 else "grid"))
        parts.append(text(x(value), bottom + 16, f"{value:.2f}".rstrip("0").rstrip("."), "middle"))
    parts.append(line(left, bottom, right, bottom, "base"))
    for index, row in enumerate(rows):
        y = 20.0 + 62 * index
        parts += [text(left, y, row.name, kind="name"), text(left, y + 15, row.note)]
        parts.append(text(right, y + 15, row.words, "end", "value"))
        if row.low is not None and row.high is not None:
            parts += whisker(x(row.low), x(row.high), y + 29, f"reach {row.tone}")
        parts.append(circle(x(row.median), y + 29, 4, f"dot {row.tone}", f"{row.name}: {row.words}"))
    parts.append(text((left + right) / 2, bottom + 36, x_label, "middle", "axis"))
    values_text = "; ".join(f"{row.name}: {row.words}" for row in rows)
    return figure(parts, bottom + 44, identity, title, f"{x_label}. {values_text}.")
