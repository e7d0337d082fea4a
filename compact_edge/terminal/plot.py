"""Plots as standalone SVG files: panels of lines and points, in light and dark colours.

Series differ by colour, dashes and marker size, so that readers can distinguish them without colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from runtime_bench.report.svg import DARK, FONT, LIGHT, WIDTH, Frame, Point, circle, file, line, number, text, ticks

# Colours of the series. The first is for the main series.
_COLOURS = ("blue", "orange", "green", "purple", "grey", "olive", "red", "ink")
_DASHES = ("", "6 4", "2 3", "8 3 2 3", "4 2", "1 3", "5 2 1 2", "")
_GAP, _MARGIN, _LEGEND = 28.0, 16.0, 18.0


@dataclass(frozen=True)
class Series:
    """Points of one kind with their tooltips.

    Attributes:
        name: name in the legend.
        points: points in the order of the line.
        tips: one tooltip per point.
        style: index of colour and dashes.
        joined: whether to draw a line through the points.
        hollow: whether to draw open markers.
        ring: whether to draw a ring around the markers.
        marks: whether to draw markers.
        in_legend: whether the legend has the series.
    """

    name: str
    points: tuple[Point, ...]
    tips: tuple[str, ...]
    style: int
    joined: bool = True
    hollow: bool = False
    ring: bool = False
    marks: bool = True
    in_legend: bool = True


@dataclass(frozen=True)
class Panel:
    """One plot.

    Attributes:
        title, x_label, y_label: title and axis labels.
        series: the series to draw.
        labels: texts next to single points.
        marked: position x and text of a vertical line.
    """

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    labels: tuple[tuple[Point, str], ...] = ()
    marked: tuple[float, str] | None = None


def document(panels: Sequence[Panel], title: str, description: str) -> str:
    """Return the SVG file: the panels one below another, and title and description for screen readers."""
    body, y = [], _MARGIN
    for panel in panels:
        drawn, height = _panel(panel)
        body.append(f'<g transform="translate({number(_MARGIN)} {number(y)})">{drawn}</g>')
        y += height + _GAP
    width, height = WIDTH + 2 * _MARGIN, y - _GAP + _MARGIN
    return file(width, height, body, title=title, description=description, style=_style(), scale=1.6)


def _panel(panel: Panel) -> tuple[str, float]:
    parts = [text(0, 12, panel.title, kind="title")]
    y = 32.0
    for one in (each for each in panel.series if each.in_legend):
        parts.append(line(2, y - 4, 26, y - 4, f"curve s{one.style}") if one.joined else "")
        parts += [
            _mark(14, y - 4, replace(one, ring=False), "") if one.marks else "",
            text(34, y, one.name, kind="name"),
        ]
        y += _LEGEND
    points = [point for one in panel.series for point in one.points]
    xs, ys = [point.x for point in points], [point.y for point in points]
    frame = Frame(ticks(min(xs), max(xs), 6), ticks(min(ys), max(ys), 5), panel.x_label, panel.y_label)
    if panel.marked is not None:
        x = frame.x(panel.marked[0])
        side = "start" if x < (frame.left + frame.right) / 2 else "end"
        frame.parts.append(line(x, frame.top, x, frame.bottom, "one"))
        frame.parts.append(text(x + (5 if side == "start" else -5), frame.top + 9, panel.marked[1], side, "name"))
    for one in panel.series:
        if one.joined:
            frame.curve(one.points, f"s{one.style}")
    for one in (each for each in panel.series if each.marks):
        frame.parts += [
            _mark(frame.x(point.x), frame.y(point.y), one, tip) for point, tip in zip(one.points, one.tips, strict=True)
        ]
    for point, words in panel.labels:
        after = frame.x(point.x) < frame.right - 40
        x = frame.x(point.x) + (7 if after else -7)
        frame.parts.append(text(x, frame.y(point.y) - 6, words, "start" if after else "end", "name"))
    parts.append(f'<g transform="translate(0 {number(y - 6)})">{"".join(frame.parts)}</g>')
    return "".join(parts), y - 6 + frame.height


def _mark(x: float, y: float, series: Series, tip: str) -> str:
    kind = f"mark s{series.style}" + (" hollow" if series.hollow else "")
    ring = circle(x, y, 5.2, f"ring s{series.style}") if series.ring else ""
    return ring + circle(x, y, 3.4 if series.joined else 2.6, kind, tip)


def _style() -> str:
    def rules(colours: Mapping[str, str]) -> str:
        series = "".join(
            f".curve.s{n}{{stroke:{colours[name]};stroke-dasharray:{dashes or 'none'}}}"
            f".mark.s{n}{{fill:{colours[name]};stroke:{colours[name]}}}.ring.s{n}{{stroke:{colours[name]}}}"
            for n, (name, dashes) in enumerate(zip(_COLOURS, _DASHES, strict=True))
        )
        return (
            ".paper{{fill:{paper}}}text{{fill:{soft}}}.title,.name{{fill:{ink}}}.grid{{stroke:{grid}}}"
            ".base,.one{{stroke:{soft}}}".format(**colours)
            + series
            + f".mark.hollow{{fill:{colours['paper']}}}"
        )

    return (
        f"text{{font:11.5px {FONT}}}"
        ".title{font-size:13px;font-weight:600}.curve{fill:none;stroke-width:1.8}.mark{stroke-width:1.4}.ring{fill:none}"
        ".one{stroke-dasharray:2 3}" + rules(LIGHT) + "@media (prefers-color-scheme:dark){" + rules(DARK) + "}"
    )
