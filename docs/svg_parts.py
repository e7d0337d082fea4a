"""Building blocks of the pictures in docs/: one style for all, light and dark, and readable without colour.

Kept parts are filled and dropped parts are hatched. Colours and shapes are those of the reports
(`runtime_bench.report.svg`). A picture has its own background, so it can be read on any page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from runtime_bench.report.svg import DARK, FONT, LIGHT, file, number, text

_MONO = "ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace"
# Width of a character of the widest common monospaced font at 12 pixels.
MONO_WIDTH = 7.3
# What a colour is used for in the pictures -> its name in the palette.
_USES = {"keep": "blue", "gone": "orange", "third": "green", "good": "green", "bad": "red"}
_RULES = (
    f"text{{font:12px {FONT};fill:var(--soft)}}.mono{{font-family:{_MONO}}}"
    ".title{font-size:13px;font-weight:600;fill:var(--ink)}.name,.value{fill:var(--ink)}.name{font-weight:600}"
    ".ink{fill:var(--ink)}.on{fill:var(--on)}.paper{fill:var(--paper)}"
    ".keep{fill:var(--keep)}.third{fill:var(--third)}.calm{fill:var(--rule)}"
    ".box{fill:none;stroke:var(--soft)}.gone{fill:url(#hatch);stroke:var(--gone)}.gonetext{fill:var(--gone)}"
    ".grid{stroke:var(--grid)}.base,.arrow{stroke:var(--soft);fill:none}.cut{stroke:var(--gone);stroke-width:1.5;"
    "stroke-dasharray:6 4}.one{stroke:var(--soft);stroke-dasharray:2 3}"
    ".reach{stroke:var(--soft);stroke-width:1.6}.dot{fill:var(--soft)}"
    ".reach.good{stroke:var(--good)}.dot.good{fill:var(--good)}.reach.bad{stroke:var(--bad)}.dot.bad{fill:var(--bad)}"
)


_DEFS = (
    '<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect class="paper" width="6" height="6"/><path d="M0 0V6" stroke="var(--gone)" stroke-width="2"/></pattern>'
    '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0L8 4L0 8z" class="dot"/></marker></defs>'
)


def _variables(colours: Mapping[str, str], rule: str) -> str:
    names = ("paper", "ink", "soft", "grid", "on")
    values = {name: colours[name] for name in names} | {use: colours[name] for use, name in _USES.items()}
    return "svg{" + "".join(f"--{name}:{colour};" for name, colour in {**values, "rule": rule}.items()) + "}"


def words(x: float, y: float, label: str, kind: str = "", anchor: str = "start") -> str:
    """A label, escaped."""
    return text(x, y, label, anchor, kind)


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    """A line with a head at its end."""
    points = " ".join(number(value) for value in (x1, y1, x2, y2))
    first, second, third, fourth = points.split()
    return f'<path class="arrow" d="M{first} {second}L{third} {fourth}" marker-end="url(#head)"/>'


def picture(width: float, height: float, title: str, description: str, body: Sequence[str]) -> str:
    """The file: style, patterns and paper around the body; title and description for those who cannot see it."""
    dark = f"@media (prefers-color-scheme:dark){{{_variables(DARK, '#3a4652')}}}"
    # Spaces in labels stay as they are.
    parts = [_DEFS, '<g xml:space="preserve">\n', "\n".join(body), "\n</g>"]
    return file(
        width, height, parts, title=title, description=description, style=_variables(LIGHT, "#d9dee4") + dark + _RULES
    )
