"""Plots as inline SVG: no script, no font, no file. Colours are classes of the page's style sheet.

Sides differ by colour, by the marker's shape and by the line's dashes: pruned is a filled circle on a solid line,
baseline a hollow square on a dashed one. Coordinates are in units of the view box (`WIDTH` wide).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 400
# Width of a digit in the widest common font (DejaVu Sans) at the largest size that report.css gives labels.
_CHARACTER = 0.64 * 13


@dataclass(frozen=True)
class Point:
    """A value, with the interval of its median if there is one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """The points of one side, in the order of the line. `kind` is `pruned` or `baseline`."""

    kind: str
    name: str
    points: tuple[Point, ...]


def number(value: float) -> str:
    """Return a coordinate with two decimals, which is finer than any screen."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten) that span low..high, about `count` of them."""
    # The logarithm of a difference of nearly 0 gives no useful step.
    if not high - low > 1e-290:
        margin = abs(low) * 0.05 if abs(low) > 1e-280 else 0.5
        low, high = low - margin, low + margin
    rough = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """Return labels with as many decimals as the step needs."""
    step = values[1] - values[0] if len(values) > 1 else 1.0
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 0
    if step > 0 and round(step, decimals) != round(step, decimals + 1):
        decimals += 1
    return [f"{value:,.{decimals}f}" for value in values]


def text(x: float, y: float, words: str, anchor: str = "start", kind: str = "tick") -> str:
    """Return a label, escaped."""
    return f'<text class="{kind}" x="{number(x)}" y="{number(y)}" text-anchor="{anchor}">{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """Return a straight line."""
    return f'<line class="{kind}" x1="{number(x1)}" y1="{number(y1)}" x2="{number(x2)}" y2="{number(y2)}"/>'


def marker(x: float, y: float, kind: str, words: str = "") -> str:
    """Return the mark of a side, with a tooltip if `words` are given."""
    tip = f"<title>{escape(words)}</title>" if words else ""
    if kind == "pruned":
        return f'<circle class="mark {kind}" cx="{number(x)}" cy="{number(y)}" r="4.5">{tip}</circle>'
    return f'<rect class="mark {kind}" x="{number(x - 4)}" y="{number(y - 4)}" width="8" height="8">{tip}</rect>'


def figure(body: Sequence[str], height: float, identity: str, title: str, description: str) -> str:
    """Return the svg element, with a name and description for screen readers. `identity` is unique in the page."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {number(height)}" role="img" aria-labelledby="{identity}-t {identity}-d">'
        f'<title id="{identity}-t">{escape(title)}</title><desc id="{identity}-d">{escape(description)}</desc>'
        + "".join(body)
        + "</svg>"
    )


class Frame:
    """Axes of a plot: coordinates of values, lines and labels."""

    def __init__(
        self,
        x_ticks: Sequence[float],
        y_ticks: Sequence[float],
        x_label: str,
        y_label: str,
        height: float = 280.0,
        x_positions: Sequence[float] | None = None,
    ) -> None:
        """Set the ranges to span the ticks. `x_positions` are the labelled values of x, if not every tick."""
        self.height = height
        self._x, self._y = (x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1])
        labels = tick_labels(y_ticks)
        self.left = 14 + max(len(label) for label in labels) * _CHARACTER
        self.right, self.top, self.bottom = WIDTH - 18.0, 30.0, height - 44.0
        self.parts = [text(0, 13, y_label, kind="axis")]
        for value, label in zip(y_ticks, labels, strict=True):
            self.parts.append(line(self.left, self.y(value), self.right, self.y(value), "grid"))
            self.parts.append(text(self.left - 7, self.y(value) + 4, label, "end"))
        shown = x_ticks if x_positions is None else x_positions
        names = tick_labels(shown) if x_positions is None else [f"{value:,.0f}" for value in shown]
        last = -math.inf
        for value, label in sorted(zip(shown, names, strict=True)):
            place, half = self.x(value), len(label) * _CHARACTER / 2
            if place - half < last:
                continue
            last = place + half + 4
            self.parts.append(line(place, self.bottom, place, self.bottom + 4, "base"))
            self.parts.append(text(place, self.bottom + 18, label, "middle"))
        self.parts.append(line(self.left, self.bottom, self.right, self.bottom, "base"))
        self.parts.append(text((self.left + self.right) / 2, height - 6, x_label, "middle", "axis"))

    def x(self, value: float) -> float:
        """Return the coordinate of a value on the horizontal axis."""
        return self.left + (value - self._x[0]) / ((self._x[1] - self._x[0]) or 1) * (self.right - self.left)

    def y(self, value: float) -> float:
        """Return the coordinate of a value on the vertical axis."""
        return self.bottom - (value - self._y[0]) / ((self._y[1] - self._y[0]) or 1) * (self.bottom - self.top)

    def whisker(self, point: Point) -> None:
        """Draw the vertical interval of a point, if it has one, over its mark, which may be larger."""
        if point.low is None or point.high is None:
            return
        x, low, high = self.x(point.x), self.y(point.low), self.y(point.high)
        self.parts.append(line(x, low, x, high, "whisker ink"))
        self.parts += [line(x - 6, end, x + 6, end, "whisker ink") for end in (low, high)]

    def curve(self, points: Sequence[Point], kind: str) -> None:
        """Draw the line through points."""
        if len(points) > 1:
            path = " ".join(f"{number(self.x(point.x))},{number(self.y(point.y))}" for point in points)
            self.parts.append(f'<polyline class="curve {kind}" points="{path}"/>')


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
    room = max(len(bar.words) for bar in every) * _CHARACTER + 12
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
            parts.append(_bar(bar, left, x(bar.value), y))
            end = x(bar.value)
            if bar.low is not None and bar.high is not None:
                end = max(end, x(bar.high))
                parts.append(line(x(bar.low), y + 7, x(bar.high), y + 7, "whisker ink"))
                parts += [line(x(place), y + 4, x(place), y + 10, "whisker ink") for place in (bar.low, bar.high)]
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


def _bar(bar: Bar, left: float, right: float, y: float) -> str:
    return (
        f'<rect class="bar {bar.kind}" x="{number(left)}" y="{number(y)}" width="{number(max(right - left, 1))}" '
        f'height="14"><title>{escape(f"{bar.name}: {bar.words}")}</title></rect>'
    )


def interval(low: float | None, middle: float, high: float | None, kind: str, reach: float) -> str:
    """Return a ratio on a logarithmic axis around 1, for a table's cell.

    1/reach is at the left end, reach at the right.
    """
    width, height = 150.0, 20.0
    span = math.log(reach)

    def x(value: float) -> float:
        return width / 2 + max(-1.0, min(1.0, math.log(value) / span)) * (width / 2 - 7)

    parts = [f'<line class="one" x1="{number(width / 2)}" y1="0" x2="{number(width / 2)}" y2="{number(height)}"/>']
    if low is not None and high is not None:
        parts.append(line(x(low), 10, x(high), 10, f"reach {kind}"))
        parts += [line(x(end), 6, x(end), 14, f"reach {kind}") for end in (low, high)]
    parts.append(f'<circle class="dot {kind}" cx="{number(x(middle))}" cy="10" r="3.6"/>')
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
        share = math.log(value) / math.log(reach)
        return (left + right) / 2 + max(-1.0, min(1.0, share)) * (right - left) / 2

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
            parts.append(line(x(row.low), y + 29, x(row.high), y + 29, f"reach {row.tone}"))
            parts += [line(x(end), y + 25, x(end), y + 33, f"reach {row.tone}") for end in (row.low, row.high)]
        parts.append(
            f'<circle class="dot {row.tone}" cx="{number(x(row.median))}" cy="{number(y + 29)}" r="4">'
            f"<title>{escape(f'{row.name}: {row.words}')}</title></circle>"
        )
    parts.append(text((left + right) / 2, bottom + 36, x_label, "middle", "axis"))
    values_text = "; ".join(f"{row.name}: {row.words}" for row in rows)
    return figure(parts, bottom + 44, identity, title, f"{x_label}. {values_text}.")
