"""The tables and the pictures of `docs/front.md`, and the short table of README.md, from the cells of `front.py`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from benchmarks.common import DOCS, RESULTS, ROOT, recorded, table, write_table
from compact_edge.terminal.plot import Panel, Series, document
from runtime_bench.report import svg

MODELS = ("gemma-3-270m", "smollm2-135m", "qwen2.5-coder-0.5b", "tiny")
README_MODELS = ("gemma-3-270m", "smollm2-135m")
TEXTS = ("wikitext", "technical", "fiction", "code")
PAGE = "front.md"
WHOLE = "1|1|F16|"
# Bits per weight of a type's name, for the colours of the picture.
_BITS = {"Q8": 8, "Q6": 6, "Q5": 5, "Q4": 4, "IQ4": 4, "Q3": 3, "IQ3": 3, "IQ2": 2}


@dataclass(frozen=True)
class Point:
    """One measured file.

    Attributes:
        name: type of the file, with the type of the embedding if it differs.
        cell: the recorded cell.
        loss: mean of ln(bits per byte / the unpruned F16 file's).
        cut: whether tokens or channels are dropped.
        searched: share of the unpruned Q8_0 file for which the search chose it, or None.
    """

    name: str
    cell: Mapping[str, Any]
    loss: float
    cut: bool
    searched: str | None = None

    @property
    def size(self) -> float:
        """Size in MB."""
        return float(self.cell["bytes"]) / 1e6


def _cells(name: str) -> dict[str, dict[str, Any]]:
    return recorded(name)["cells"] if (RESULTS / f"{name}.json").is_file() else {}


def points_of(model: str) -> list[Point]:
    """All measured files of a model, smallest first."""
    cells = _cells(f"front-{model}")
    if WHOLE not in cells:
        return []
    before = cells[WHOLE]["bits_per_byte"]
    found = []
    for key, cell in cells.items():
        vocabulary, ffn, quant, embedding = key.split("|")
        name = f"{quant}, embedding {embedding}" if embedding else quant
        found.append(Point(name, cell, _loss(cell, before), (vocabulary, ffn) != ("1", "1")))
    whole = cells[WHOLE]
    for share, cell in _cells(f"front-search-{model}").items():
        cut = any(cell[size] != whole[size] for size in ("vocab_size", "intermediate_size"))
        found.append(Point(cell["type"], cell, _loss(cell, before), cut, share))
    return sorted(found, key=lambda one: (one.size, one.loss))


def _loss(cell: Mapping[str, Any], before: Mapping[str, float]) -> float:
    return fmean(math.log(cell["bits_per_byte"][name] / before[name]) for name in TEXTS)


def _percent(loss: float) -> str:
    return f"{100 * math.expm1(loss):+.1f}%"


def _front(points: Iterable[Point]) -> list[Point]:
    front: list[Point] = []
    for point in points:
        if not front or point.loss < front[-1].loss:
            front.append(point)
    return front


def points_table(points: Sequence[Point]) -> str:
    """All measured files of a model."""
    front = _front(points)
    rows = [
        [
            f"{point.size:.1f}",
            point.name,
            f"{point.cell['vocab_size']:,}",
            f"{point.cell['intermediate_size']:,}",
            *(f"{point.cell['bits_per_byte'][name]:.3f}" for name in TEXTS),
            _percent(point.loss),
            ", ".join(["front"] * (point in front) + ["by the search"] * bool(point.searched)),
        ]
        for point in points
    ]
    return table(["MB", "type", "vocab_size", "intermediate_size", *TEXTS, "mean loss", ""], rows)


def budgets_table(models: Sequence[str] = MODELS) -> str:
    """What the search chooses for each size, beside the best unpruned file and the best cut of a plain type."""
    rows = []
    for model in models:
        points = points_of(model)
        for share, cell in _cells(f"front-search-{model}").items():
            limit = cell["fit_bytes"] / 1e6
            chosen = next(point for point in points if point.searched == share)
            fitting = [point for point in points if point.searched is None and point.size <= limit]
            unpruned = min((p for p in fitting if not p.cut), key=lambda p: p.loss, default=None)
            cut = min((p for p in fitting if p.cut), key=lambda p: p.loss, default=None)
            rows.append(
                [
                    model,
                    _megabytes(limit),
                    f"{chosen.name}, {cell['vocab_size']:,} / {cell['intermediate_size']:,}, {_megabytes(chosen.size)}",
                    _percent(chosen.loss),
                    _other(unpruned),
                    _other(cut),
                ]
            )
    header = ["model", "limit", "the search's file: type, vocab_size / intermediate_size", "loss"]
    return table([*header, "best unpruned file", "best other cut"], rows) if rows else ""


def _other(point: Point | None) -> str:
    return "none fits" if point is None else f"{_percent(point.loss)} ({point.name}, {_megabytes(point.size)})"


def _megabytes(size: float) -> str:
    return f"{size:.1f} MB" if size < 10 else f"{size:.0f} MB"


def predictions_table() -> str:
    """How well the predictions rank the measured files."""
    rows = []
    for model in MODELS:
        cells, before = _cells(f"front-{model}"), _cells(f"front-{model}").get(WHOLE)
        predicted = _cells(f"front-predictions-{model}")
        keys = [key for key in predicted if key in cells]
        if before is None or len(keys) < 3:
            continue
        measured = [_loss(cells[key], before["bits_per_byte"]) for key in keys]
        values = [predicted[key]["predicted"] for key in keys]
        errors = sorted(abs(a - b) for a, b in zip(measured, values, strict=True))
        rows.append(
            [
                model,
                str(len(keys)),
                f"{spearman(measured, values):.3f}",
                f"{100 * errors[len(errors) // 2]:.1f}",
                f"{100 * errors[-1]:.1f}",
            ]
        )
    header = ["model", "files", "rank correlation", "median error, percentage points", "largest"]
    return table(header, rows) if rows else ""


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """The rank correlation of two lists: the correlation of their ranks, with mean ranks for equal values."""
    a, b = _ranks(first), _ranks(second)
    mean = (len(a) + 1) / 2
    top = sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
    return top / math.sqrt(sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b))


def _ranks(values: Sequence[float]) -> list[float]:
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2 for value in values
    ]


def speeds_table() -> str:
    """Speeds of unpruned and pruned files, relative to the unpruned Q8_0 file."""
    rows = []
    for model in MODELS:
        cells, qualities = _cells(f"front-speed-{model}"), _cells(f"front-{model}")
        if not cells or WHOLE not in qualities:
            continue
        first = next(iter(cells.values()))
        for key, cell in cells.items():
            quality = qualities[key]
            quant, embedding = key.split("|")[2:]
            rows.append(
                [
                    model,
                    f"{quant}, embedding {embedding}" if embedding else quant,
                    f"{quality['vocab_size']:,} / {quality['intermediate_size']:,}",
                    f"{cell['bytes'] / 1e6:.0f} MB",
                    _percent(_loss(quality, qualities[WHOLE]["bits_per_byte"])),
                    *(
                        f"{cell[name]:,.0f} (x{cell[name] / first[name]:.2f})"
                        for name in ("decode_characters_per_second", "prefill_characters_per_second")
                    ),
                ]
            )
    header = ["model", "type", "vocab_size / intermediate_size", "file", "mean loss"]
    return table([*header, "decode, characters/s", "prefill, characters/s"], rows) if rows else ""


def ratios_table() -> str:
    """The loss of `--ratio` by prediction beside the fixed rule's."""
    rows = []
    for model in MODELS:
        cells = _cells(f"front-ratios-{model}")
        before = cells.get("unpruned", {}).get("bits_per_byte")
        for key, cell in cells.items():
            if key == "unpruned" or before is None:
                continue
            ratio, split = key.split("|")
            losses = {name: math.log(cell["bits_per_byte"][name] / before[name]) for name in TEXTS}
            rows.append(
                [
                    model,
                    ratio,
                    "`--split proportional`" if split == "proportional" else "default",
                    f"{cell['vocab_size']:,}",
                    f"{cell['intermediate_size']:,}",
                    *(_percent(losses[name]) for name in TEXTS),
                ]
            )
    return table(["model", "ratio", "split", "vocab_size", "intermediate_size", *TEXTS], rows) if rows else ""


def picture(model: str, points: Sequence[Point]) -> str:
    """The measured files of a model: bytes against loss, with the front as a line."""
    # The F16 file is twice as large as the others, and would push them together.
    shown = [point for point in points if math.expm1(point.loss) <= 0.35 and point.name != "F16"]
    front = _front(shown)
    groups: dict[tuple[str, bool], list[Point]] = {}
    for point in shown:
        groups.setdefault((_group(point), point.cut), []).append(point)
    series = [
        Series("front of the measured files", _places(front), _tips(front), 4, joined=True),
        *(
            Series(
                f"{name}, {'pruned' if cut else 'unpruned'}",
                _places(some),
                _tips(some),
                style,
                joined=False,
                hollow=not cut,
            )
            for (name, cut), some in sorted(groups.items())
            for style in (_STYLES[name],)
        ),
    ]
    title = f"{model}: prune, quantise, or both"
    panel = Panel(title, "MB", "bits per byte, % above the unpruned F16 file, mean of four texts", tuple(series))
    listed = "; ".join(f"{point.size:.0f} MB {_percent(point.loss)} ({point.name})" for point in front)
    return document([panel], title, f"The front of file size and loss: {listed}.")


_STYLES = {"8 bits": 0, "5 and 6 bits": 2, "4 bits": 1, "2 and 3 bits": 3, "mixes": 5}


def _group(point: Point) -> str:
    if point.name.startswith("mix"):
        return "mixes"
    prefix = point.name.split("_")[0].rstrip("0123456789") + "".join(filter(str.isdigit, point.name.split("_")[0]))
    bits = _BITS.get(prefix, 4)
    if bits >= 8:
        return "8 bits"
    return "5 and 6 bits" if bits >= 5 else "4 bits" if bits == 4 else "2 and 3 bits"


def _places(points: Sequence[Point]) -> tuple[svg.Point, ...]:
    return tuple(svg.Point(point.size, 100 * math.expm1(point.loss)) for point in points)


def _tips(points: Sequence[Point]) -> tuple[str, ...]:
    return tuple(
        f"{point.name}, {point.cell['vocab_size']} / {point.cell['intermediate_size']}, {point.size:.1f} MB: "
        f"{_percent(point.loss)}"
        for point in points
    )


def _measured() -> list[tuple[str, list[Point]]]:
    """Return (model, its files) of the models that have been measured."""
    return [(model, points) for model in MODELS if (points := points_of(model))]


def pictures() -> dict[str, str]:
    """File name -> the picture of a model's measured files."""
    return {f"front-{model}.svg": picture(model, points) for model, points in _measured()}


def tables() -> dict[str, str]:
    """Mark in the page -> table."""
    return {
        "quality.front": "\n\n".join(f"### {model}\n\n{points_table(points)}" for model, points in _measured()),
        "quality.front_budgets": budgets_table(),
        "quality.front_predictions": predictions_table(),
        "quality.front_ratios": ratios_table(),
        "quality.front_speed": speeds_table(),
    }


def write_page() -> None:
    """Write all tables and pictures."""
    for name, drawing in pictures().items():
        (DOCS / name).write_text(drawing, encoding="utf-8")
    for mark, rows in tables().items():
        write_table(PAGE, mark, rows)
    write_table(ROOT / "README.md", "quality.front_budgets", budgets_table(README_MODELS))
