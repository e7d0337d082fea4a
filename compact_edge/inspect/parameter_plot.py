"""Plots the shares of vocabulary, FFN and attention against model size, with one panel per family.

Each part has its own colour (from the palette of Okabe and Ito, for readers with colour blindness), marker and dashes,
and its name at the end of its line. The picture is therefore also readable in black and white.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compact.base.errors import UsageError
from compact.base.files import write_bytes

if TYPE_CHECKING:
    from compact_edge.inspect.parameter_table import Counted

# (part, name, colour, marker, dashes)
_PARTS: tuple[tuple[str, str, str, str, Any], ...] = (
    ("ffn", "FFN", "#0072B2", "o", "-"),
    ("vocabulary", "vocabulary", "#D55E00", "s", (0, (5, 1.5))),
    ("attention", "attention", "#00795A", "^", (0, (1.5, 1.2))),
)
_INK, _SOFT, _GRID = "#1a1a1a", "#555555", "#dddddd"
# All panels have the same x axis (in parameters), so that readers can compare them.
_X_MIN, _X_MAX = 2.2e7, 1.1e12
# Minimum distance between the names at the ends of lines, in percentage points.
_MIN_DISTANCE = 8.5
_FORMATS = ("svg", "png")
_STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so the picture is the same on every machine
    "font.size": 8.5,
    "svg.hashsalt": "compact-edge",
    "svg.fonttype": "path",
    "axes.edgecolor": _SOFT,
    "axes.labelcolor": _INK,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "text.color": _INK,
}


def write_plot(path: Path, counted: Sequence[Counted]) -> None:
    """Write the plot as .svg or .png, depending on the file's extension. Equal figures give equal bytes.

    Args:
        path: the file. An existing file is replaced.
        counted: the models, by family and size.

    Raises:
        UsageError: the file has another extension.
        StorageError: the file cannot be written.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in _FORMATS:
        raise UsageError(
            f"--plot {path.name}: the file is neither .svg nor .png", "give a name with one of these extensions"
        )
    write_bytes(path, draw(counted, kind))


def draw(counted: Sequence[Counted], kind: str) -> bytes:
    """Return the plot as the bytes of an `svg` or `png` file."""
    import matplotlib
    from matplotlib.figure import Figure

    families: dict[str, list[Counted]] = {}
    for model in counted:
        families.setdefault(model.model.family, []).append(model)
    columns = 3
    rows = -(-len(families) // columns)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.6, 0.75 + 2.35 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for panel, (family, models) in zip(panels.flat, families.items(), strict=False):
            _panel(panel, family, models)
        for panel in panels.flat[len(families) :]:
            panel.set_visible(False)
        for panel in panels[:, 0]:
            panel.set_ylabel("share of the parameters")
        for panel in panels[-1]:
            panel.set_xlabel("parameters")
        figure.suptitle(
            "The smaller the model, the more of it is vocabulary", x=0.012, ha="left", fontsize=11, fontweight="bold"
        )
        out = io.BytesIO()
        # Leave out dates and versions, so that equal pictures have equal bytes.
        metadata: dict[str, Any] = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        figure.savefig(out, format=kind, dpi=200, metadata=metadata)
    return out.getvalue()


def _panel(panel: Any, family: str, models: Sequence[Counted]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    models = sorted({model.parts.total: model for model in models}.values(), key=lambda model: model.parts.total)
    sizes = [model.parts.total for model in models]
    panel.set_title(family, loc="left", fontsize=9.5, fontweight="bold", pad=4)
    panel.set_title(f"{_size(sizes[0])} to {_size(sizes[-1])}", loc="right", fontsize=8, color=_SOFT, pad=4)
    panel.set_xscale("log")
    panel.set_xlim(_X_MIN, _X_MAX)
    panel.set_ylim(0, 100)
    panel.grid(axis="y", color=_GRID, linewidth=0.6)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    panel.xaxis.set_major_locator(FixedLocator([1e8, 1e9, 1e10, 1e11]))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _size(value)))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.yaxis.set_major_locator(FixedLocator([0, 25, 50, 75, 100]))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}%"))
    values = {name: [100 * model.shares[part] for model in models] for part, name, *_ in _PARTS}
    for _, name, colour, marker, dashes in _PARTS:
        panel.plot(
            sizes, values[name], color=colour, marker=marker, linestyle=dashes, markersize=4.2, linewidth=1.5,
            markeredgecolor="white", markeredgewidth=0.5, clip_on=False,
        )  # fmt: skip
    first = _spread({name: shares[0] for name, shares in values.items()})
    last = _spread({name: shares[-1] for name, shares in values.items()})
    for _, name, colour, *_ in _PARTS:
        start, end = values[name][0], values[name][-1]
        style = {"textcoords": "offset points", "va": "center", "fontsize": 7.5, "color": colour}
        panel.annotate(f"{start:.0f}%", (sizes[0], first[name]), xytext=(-5, 0), ha="right", **style)
        panel.annotate(f"{end:.0f}% {name}", (sizes[-1], last[name]), xytext=(5, 0), ha="left", **style)


def _spread(ends: dict[str, float]) -> dict[str, float]:
    """Return a height for each name: near the end of its line, without overlaps."""
    placed: dict[str, float] = {}
    lowest = 3.0
    for name, height in sorted(ends.items(), key=lambda pair: pair[1]):
        placed[name] = max(height, lowest)
        lowest = placed[name] + _MIN_DISTANCE
    return placed


def _size(value: float) -> str:
    """Format a number of parameters for people: 100M, 1.2B, 70B."""
    if value < 1e9 - 5e6:
        return f"{value / 1e6:.0f}M"
    return f"{value / 1e9:.1f}B".replace(".0B", "B") if value < 1e10 else f"{value / 1e9:.0f}B"
