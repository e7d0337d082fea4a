"""Building blocks of the pictures in docs/: one style for all, light and dark, and readable without colour.

Kept parts are filled and dropped parts are hatched. Colours are those of Okabe and Ito, as in the reports. A picture
has its own background, so it can be read on any page.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_SANS = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif"
_MONO = "ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace"
# Width of a character of the widest common monospaced font at 12 pixels.
MONO_WIDTH = 7.3
_LIGHT = {
    "paper": "#ffffff", "ink": "#16202a", "soft": "#515c68", "rule": "#d9dee4", "grid": "#e6eaee",
    "keep": "#0072b2", "gone": "#c25400", "third": "#00664a", "good": "#00664a", "bad": "#a83b00", "on": "#ffffff",
}  # fmt: skip
_DARK = {
    "paper": "#182027", "ink": "#e8edf2", "soft": "#a5b1bd", "rule": "#3a4652", "grid": "#29333d",
    "keep": "#56b4e9", "gone": "#e69f00", "third": "#5fd6ae", "good": "#5fd6ae", "bad": "#ffa470", "on": "#10151a",
}  # fmt: skip
_RULES = (
    f"text{{font:12px {_SANS};fill:var(--soft)}}.mono{{font-family:{_MONO}}}"
    ".title{font-size:13px;font-weight:600;fill:var(--ink)}.name,.value{fill:var(--ink)}.name{font-weight:600}"
    ".ink{fill:var(--ink)}.on{fill:var(--on)}.paper{fill:var(--paper)}"
    ".keep{fill:var(--keep)}.third{fill:var(--third)}.calm{fill:var(--rule)}"
    ".box{fill:none;stroke:var(--soft)}.gone{fill:url(#hatch);stroke:var(--gone)}.gonetext{fill:var(--gone)}"
    ".grid{stroke:var(--grid)}.base,.arrow{stroke:var(--soft);fill:none}.cut{stroke:var(--gone);stroke-width:1.5;"
    "stroke-dasharray:6 4}.one{stroke:var(--soft);stroke-dasharray:2 3}"
    ".reach{stroke:var(--soft);stroke-width:1.6}.dot{fill:var(--soft)}"
    ".reach.good{stroke:var(--good)}.dot.good{fill:var(--good)}.reach.bad{stroke:var(--bad)}.dot.bad{fill:var(--bad)}"
)


def _variables(colours: dict[str, str]) -> str:
    return "svg{" + "".join(f"--{name}:{colour};" for name, colour in colours.items()) + "}"


def number(value: float) -> str:
    """A coordinate: a tenth of a pixel is fine enough."""
    return f"{value:.1f}".rstrip("0").rstrip(".")


def rect(x: float, y: float, width: float, height: float, kind: str, opacity: float = 1.0) -> str:
    """A rectangle of a class."""
    faint = "" if opacity == 1.0 else f' fill-opacity="{opacity:.2f}"'
    size = f'width="{number(width)}" height="{number(height)}"'
    return f'<rect class="{kind}" x="{number(x)}" y="{number(y)}" {size}{faint}/>'


def words(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    """A label, escaped; spaces in it stay."""
    name = f' class="{kind}"' if kind else ""
    return (
        f'<text{name} x="{number(x)}" y="{number(y)}" text-anchor="{anchor}" xml:space="preserve">{escape(text)}</text>'
    )


def stroke(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A straight line."""
    return f'<line class="{kind}" x1="{number(x1)}" y1="{number(y1)}" x2="{number(x2)}" y2="{number(y2)}"/>'


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    """A line with a head at its end."""
    points = " ".join(number(value) for value in (x1, y1, x2, y2))
    first, second, third, fourth = points.split()
    return f'<path class="arrow" d="M{first} {second}L{third} {fourth}" marker-end="url(#head)"/>'


def picture(width: float, height: float, title: str, description: str, body: Sequence[str]) -> str:
    """The file: style, patterns and paper around the body; title and description for those who cannot see it."""
    dark = f"@media (prefers-color-scheme:dark){{{_variables(_DARK)}}}"
    size = f'viewBox="0 0 {number(width)} {number(height)}" width="{number(width)}" height="{number(height)}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="t d">'
        f'<title id="t">{escape(title)}</title><desc id="d">{escape(description)}</desc>'
        f"<style>{_variables(_LIGHT)}{dark}{_RULES}</style><defs>"
        '<pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<rect class="paper" width="6" height="6"/><path d="M0 0V6" stroke="var(--gone)" stroke-width="2"/></pattern>'
        '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" class="dot"/></marker></defs>'
        + "\n".join([rect(0, 0, width, height, "paper"), *body])
        + "</svg>\n"
    )
