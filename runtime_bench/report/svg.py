"""What every SVG of this project is made of: colours, shapes, labels, axes, and the frame of a file.

These use it: the plots of reports (`runtime_bench.report.charts`), the plots that commands write as files
(`compact_edge.terminal.plot`), and the pictures of the documentation (`docs/svg_parts.py`). Only `inspect --plot` draws
with another tool, matplotlib, because it also writes PNG.

There is no script, no font and no link to another file in an SVG. Colours are classes of a style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 400
# Width of a digit in the widest common font (DejaVu Sans) at the largest size that report.css gives labels.
CHARACTER = 0.64 * 13
FONT = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif"

# Series colours by Okabe and Ito, which people with colour blindness can distinguish. `on` is for text on a series
# colour. report.css repeats some of these colours.
LIGHT: Mapping[str, str] = {
    "paper": "#ffffff", "ink": "#16202a", "soft": "#515c68", "grid": "#e6eaee", "on": "#ffffff",
    "blue": "#0072b2", "orange": "#c25400", "green": "#00664a", "red": "#a83b00",
    "purple": "#a0508c", "grey": "#5b6570", "olive": "#8a6d00",
}  # fmt: skip
DARK: Mapping[str, str] = {
    "paper": "#182027", "ink": "#e8edf2", "soft": "#a5b1bd", "grid": "#29333d", "on": "#10151a",
    "blue": "#56b4e9", "orange": "#e69f00", "green": "#5fd6ae", "red": "#ffa470",
    "purple": "#d98cc5", "grey": "#a5b1bd", "olive": "#e6d04a",
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """A value, with the interval of its median if there is one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


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
    name = f' class="{kind}"' if kind else ""
    return f'<text{name} x="{number(x)}" y="{number(y)}" text-anchor="{anchor}">{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """Return a straight line."""
    return f'<line class="{kind}" x1="{number(x1)}" y1="{number(y1)}" x2="{number(x2)}" y2="{number(y2)}"/>'


def circle(x: float, y: float, radius: float, kind: str, tip: str | None = None) -> str:
    """Return a circle, with a tooltip if `tip` is given."""
    start = f'<circle class="{kind}" cx="{number(x)}" cy="{number(y)}" r="{number(radius)}"'
    return _with_tip(start, "circle", tip)


def rect(
    x: float, y: float, width: float, height: float, kind: str, *, tip: str | None = None, opacity: float = 1.0
) -> str:
    """Return a rectangle, with a tooltip if `tip` is given."""
    faint = "" if opacity == 1.0 else f' fill-opacity="{opacity:.2f}"'
    size = f'width="{number(width)}" height="{number(height)}"{faint}'
    return _with_tip(f'<rect class="{kind}" x="{number(x)}" y="{number(y)}" {size}', "rect", tip)


def _with_tip(start: str, name: str, tip: str | None) -> str:
    if tip is None:
        return f"{start}/>"
    return f"{start}>{f'<title>{escape(tip)}</title>' if tip else ''}</{name}>"


def whisker(low: float, high: float, y: float, kind: str, half: float = 4.0) -> list[str]:
    """Return a horizontal interval from x = `low` to x = `high`, with an upright end of 2 * `half` on each side."""
    ends = [line(end, y - half, end, y + half, kind) for end in (low, high)]
    return [line(low, y, high, y, kind), *ends]


def ratio_place(value: float, reach: float, middle: float, half: float) -> float:
    """Return the coordinate of a ratio on a logarithmic axis.

    1 is at `middle`, `reach` and beyond at `middle` + `half`.
    """
    return middle + max(-1.0, min(1.0, math.log(value) / math.log(reach))) * half


def named(title: str, description: str, identity: str = "") -> tuple[str, str]:
    """Return the attributes and the first elements of an svg that name it and describe it for screen readers.

    `identity` is unique in the page; it is empty for a file.
    """
    name, described = (f"{identity}-t", f"{identity}-d") if identity else ("t", "d")
    return (
        f'role="img" aria-labelledby="{name} {described}"',
        f'<title id="{name}">{escape(title)}</title><desc id="{described}">{escape(description)}</desc>',
    )


def file(
    width: float, height: float, body: Iterable[str], *, title: str, description: str, style: str, scale: float = 1.0
) -> str:
    """Return the text of an SVG file: the style sheet, and a background (class `paper`) below the body.

    The picture is shown `scale` times as large as its coordinates.
    """
    attributes, names = named(title, description)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {number(width)} {number(height)}" '
        f'width="{number(scale * width)}" height="{number(scale * height)}" {attributes}>{names}'
        f'<style>{style}</style><rect class="paper" width="{number(width)}" height="{number(height)}"/>'
        + "".join(body)
        + "</svg>\n"
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
        self.left = 14 + max(len(label) for label in labels) * CHARACTER
        self.right, self.top, self.bottom = WIDTH - 18.0, 30.0, height - 44.0
        self.parts = [text(0, 13, y_label, kind="axis")]
        for value, label in zip(y_ticks, labels, strict=True):
            self.parts.append(line(self.left, self.y(value), self.right, self.y(value), "grid"))
            self.parts.append(text(self.left - 7, self.y(value) + 4, label, "end"))
        shown = x_ticks if x_positions is None else x_positions
        names = tick_labels(shown) if x_positions is None else [f"{value:,.0f}" for value in shown]
        last = -math.inf
        for value, label in sorted(zip(shown, names, strict=True)):
            place, half = self.x(value), len(label) * CHARACTER / 2
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
