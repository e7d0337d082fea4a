"""The four plots of a run. A plot without values is left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime_bench.records import SIDES
from runtime_bench.report.charts import Bar, Series, bars, curves, lines, scatter
from runtime_bench.report.page import plot
from runtime_bench.report.rows import DECODE_AT_DEPTH
from runtime_bench.report.svg import Point
from runtime_bench.report.words import digits, figure

_WHISKERS = "Whiskers: interval of the median."


def plots(document: Mapping[str, Any]) -> str:
    """Return all plots as HTML; empty without values."""
    drawn = [part for part in (_decode(document), _ttft(document), _latency(document), _quality(document)) if part]
    return f'<div class="plots">{"".join(drawn)}</div>' if drawn else ""


def _decode(document: Mapping[str, Any]) -> str:
    series = []
    whiskers = False
    for side in SIDES:
        points = []
        for metric in document["metrics"]:
            place = metric["key"].removeprefix(DECODE_AT_DEPTH)
            if not metric["key"].startswith(DECODE_AT_DEPTH) or not _depth(place) or metric[side] is None:
                continue
            found = metric[side]
            whiskers |= found["low"] is not None
            points.append(Point(float(place), found["median"], found["low"], found["high"]))
        if points:
            series.append(Series(side, side, tuple(sorted(points, key=lambda point: point.x))))
    if not series:
        return ""
    heading = "Decode speed by context depth"
    drawing = lines("decode", heading, series, "context depth, tokens of the baseline", "tokens/s")
    note = "Higher is better. Tokens of the two sides differ in length: see characters per second."
    return plot(heading, f"{note} {_WHISKERS}" if whiskers else note, drawing)


def _depth(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 12


def _ttft(document: Mapping[str, Any]) -> str:
    groups, whiskers = [], False
    for metric in document["metrics"]:
        if metric["group"] != "ttft":
            continue
        group = []
        for side in SIDES:
            found = metric[side]
            if found is not None:
                whiskers |= found["low"] is not None
                group.append(
                    Bar(side, side, found["median"], figure(found["median"], "s"), found["low"], found["high"])
                )
        name = metric["key"].partition(":")[2]
        groups.append((name if len(name) <= 40 else f"{name[:39]}…", group))
    groups = [(name, group) for name, group in groups if group]
    if not groups:
        return ""
    heading = "Time to first token by prompt"
    note = f"Lower is better. {_WHISKERS}" if whiskers else "Lower is better."
    return plot(heading, note, bars("ttft", heading, groups, "seconds"))


def _latency(document: Mapping[str, Any]) -> str:
    latencies = document["inter_token_latency"]
    series, longest = [], []
    for side in SIDES:
        values = latencies[f"{side}_ms"]
        if not values:
            continue
        # The slowest 1% would squeeze the other values, so the text gives the longest latency.
        shown = [
            Point(value, percent) for percent, value in zip(latencies["percent"], values, strict=True) if percent <= 99
        ]
        if shown:
            series.append(Series(side, side, tuple(shown)))
            longest.append(f"{digits(values[-1])} ms {side}")
    if not series:
        return ""
    heading = "Inter-token latency"
    note = (
        "Share of tokens that arrived within a time; further left is better. "
        f"Up to p99; the longest: {', '.join(longest)}."
    )
    return plot(heading, note, curves("latency", heading, series, "milliseconds", "% of tokens"))


def _quality(document: Mapping[str, Any]) -> str:
    series = []
    for side in SIDES:
        subject = document["subjects"][side]
        if subject["bits_per_byte"] is not None and subject["size_bytes"] > 0:
            series.append(Series(side, side, (Point(subject["size_bytes"] / 1e6, subject["bits_per_byte"]),)))
    if not series:
        return ""
    heading = "Size against bits per byte"
    text = document["bits_per_byte_text"]
    note = f"Closer to the lower left is better. {'Measured on ' + text + '. ' if text else ''}Axes do not begin at 0."
    return plot(heading, note, scatter("quality", heading, series, "MB", "bits per byte"))
