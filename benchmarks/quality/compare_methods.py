"""COMPACT beside other ways to make a model smaller, at equal parameter counts, on three kinds of text.

    python -m benchmarks.quality.compare_methods --work-dir DIR
    python -m benchmarks.quality.compare_methods --work-dir DIR --ratios 0.2 --seeds 0     # some cells only
    python -m benchmarks.quality.compare_methods --write     # only write table and plot, from the recorded cells

Every method (`methods.py`) runs in its own process, which reports seconds and peak memory. Its checkpoint is then
scored in float32 through Transformers. The calibration is 16,384 tokens of encyclopedic and technical text in equal
shares (their first 80%); no method has seen fiction. A finished cell is kept; a cell takes 3 minutes. Writes the table
of `docs/quality.md` and `docs/methods.svg` (for another model: `methods.svg` in DIR).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any

import click

from benchmarks.common import (
    DOCS,
    DOCUMENTED,
    Cells,
    bits_per_byte,
    cache,
    evaluation_texts,
    replace_text,
    result_name,
    summary,
    table,
    write_table,
)
from benchmarks.quality.methods import CALIBRATION_TOKENS, METHODS, RECOVERY_TOKENS, SEEDLESS
from compact.sources.model_source import open_source
from compact.vocabulary.tokenizer import encode, load_tokenizer
from compact_edge.cli.library_env import quiet_libraries
from compact_edge.terminal.plot import Panel, Series, document
from runtime_bench.report.svg import Point

SCRIPT, RESULT, PLOT = "quality.compare_methods", "compare-methods", "methods.svg"
KINDS = ("wikitext", "technical", "fiction")
SEEDED_RATIO = 0.2
# (ratio, method) -> seed -> cell.
Rows = dict[tuple[str, str], dict[int, dict[str, Any]]]


def run_method(model: str, name: str, ratio: float, seed: int, out: Path) -> dict[str, Any]:
    """Run one method in its own process. Returns what it printed."""
    command = [sys.executable, "-m", "benchmarks.quality.methods", name, "--model", model, "--ratio", str(ratio)]
    command += ["--seed", str(seed), "--out", str(out)]
    # One thread: seconds then depend less on other work and on the number of cores.
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
    value: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return value


def measure(model: str, name: str, ratio: float, seed: int, texts: dict[str, str], work: Path) -> dict[str, Any]:
    """A cell: the method's cost and the scores of its model."""
    out = work / f"{name.replace(' ', '-')}-{ratio:g}-{seed}"
    try:
        cell = run_method(model, name, ratio, seed, out)
        return cell if "impossible" in cell else {**cell, **score(out, texts)}
    finally:
        shutil.rmtree(out, ignore_errors=True)


def score(directory: Path, texts: dict[str, str]) -> dict[str, Any]:
    """Size, bits per byte and tokens per byte of a checkpoint."""
    tokenizer = load_tokenizer(directory)
    lengths = {
        kind: round(len(encode(tokenizer, [text], add_special_tokens=False)[0]) / len(text.encode()), 4)
        for kind, text in texts.items()
    }
    return {
        "parameters": open_source(str(directory), cache()).n_params,
        "bits_per_byte": bits_per_byte(directory, texts),
        "tokens_per_byte": lengths,
    }


def by_row(cells: dict[str, dict[str, Any]]) -> Rows:
    """The cells of every row."""
    rows: Rows = {}
    for key, cell in cells.items():
        ratio, method, seed = key.split("|")
        rows.setdefault((ratio, method), {})[int(seed)] = cell
    return rows


def shared(rows: Rows, ratio: str, method: str) -> list[dict[str, Any]]:
    """A row's cells with the seeds that every row of the ratio has. A method that draws nothing has one cell."""
    drawing = [set(seeds) for (at, name), seeds in rows.items() if at == ratio and name not in SEEDLESS]
    own = rows[ratio, method]
    common = set(own).intersection(*drawing) if method not in SEEDLESS else set(own)
    return [own[seed] for seed in sorted(common or own)]


def show(cells: dict[str, dict[str, Any]]) -> str:
    """The table: means over the seeds that all rows of a ratio have, and half the range over all seeds of a row.

    Seeds differ by more than some methods do, so that a mean of three seeds cannot be compared with one seed.
    """
    lines = []
    rows = by_row(cells)
    for ratio, method in sorted(rows, key=_place):
        group = list(rows[ratio, method].values())
        if "impossible" in group[0]:
            lines.append([ratio, method, *["-"] * (len(KINDS) + 4)])
            continue
        compared = shared(rows, ratio, method)
        bits = [_spread([cell["bits_per_byte"][kind] for cell in each] for each in (compared, group)) for kind in KINDS]
        lengths = mean(mean(cell["tokens_per_byte"].values()) for cell in compared)
        cost = [
            f"{mean(found):.0f}" if (found := [c["seconds"] for c in group if "seconds" in c]) else "-",
            f"{max(found) / 1e9:.1f}" if (found := [c["peak_bytes"] for c in group if "peak_bytes" in c]) else "-",
        ]
        lines.append([ratio, method, f"{group[0]['parameters'] / 1e6:.1f}M", *bits, f"{lengths:.3f}", *cost])
    return table(["ratio", "method", "parameters", *KINDS, "tokens/byte", "seconds", "peak memory, GB"], lines)


def _place(row: tuple[str, str]) -> tuple[float, int]:
    ratio, method = row
    return float(ratio), ["unpruned", *METHODS].index(method)


def _spread(values: Iterable[list[float]]) -> str:
    compared, own = values
    return f"{mean(compared):.3f}" + (f" ±{(max(own) - min(own)) / 2:.3f}" if len(own) > 1 else "")


def plot(cells: dict[str, dict[str, Any]]) -> str:
    """Mean bits per byte of the three kinds against parameters: one line per method, from the unpruned model on.

    A method that is worse than 1.5 times the unpruned model somewhere flattens all others, so that a second panel
    shows only the others.
    """
    lines: dict[str, dict[str, Point]] = {}
    rows = by_row(cells)
    for ratio, method in sorted(rows, key=_place):
        group = shared(rows, ratio, method)
        if "impossible" not in group[0]:
            bits = mean(mean(cell["bits_per_byte"].values()) for cell in group)
            lines.setdefault(method, {})[ratio] = Point(group[0]["parameters"] / 1e6, bits)
    (whole,) = lines.pop("unpruned").values()
    names = [name for name in METHODS if name in lines]
    near = [name for name in names if all(point.y < 1.5 * whole.y for point in lines[name].values())]

    def series(name: str) -> Series:
        number = names.index(name)
        tips = [f"{name}, ratio {ratio}: {p.x:.1f}M, {p.y:.3f}" for ratio, p in lines[name].items()]
        points = (whole, *lines[name].values())
        tips = [f"unpruned: {whole.x:.1f}M, {whole.y:.3f}", *tips]
        # There are six colours. The methods after the sixth have open markers.
        return Series(name, points, tuple(tips), number % 6, hollow=number >= 6)

    def panel(shown: list[str], title: str) -> Panel:
        label = f"bits per byte, mean of {', '.join(KINDS)}"
        return Panel(title, "parameters, millions", label, tuple(map(series, shown)))

    panels = [panel(names, "All methods")] if names else []
    if near and near != names:
        panels.insert(0, panel(near, "Methods below 1.5 times the unpruned model"))
    summary = "; ".join(
        f"{name} " + ", ".join(f"{point.y:.3f} at {point.x:.1f}M" for point in lines[name].values()) for name in names
    )
    title = "What each method costs at each size"
    return document(panels, title, f"Unpruned {whole.y:.3f} at {whole.x:.1f}M. {summary}.")


@click.command(help=summary(__doc__))
@click.option("--work-dir", type=click.Path(path_type=Path), help="For checkpoints; holds one at a time.")
@click.option("--model", default=DOCUMENTED, show_default=True, help="Built-in name, directory or GGUF file.")
@click.option("--ratios", default="0.2,0.1,0.35", show_default=True, help="Shares of all parameters to remove.")
@click.option("--seeds", default="0,1,2", show_default=True, help="Seeds; other than 0 at ratio 0.2 only.")
@click.option("--methods", "names", default=",".join(METHODS), help="Methods to run; default: all.")
@click.option("--bytes", "n_bytes", default=64_000, show_default=True, help="Bytes to evaluate of every text.")
@click.option("--write", "only_write", is_flag=True, help="Only write table and plot, from the recorded cells.")
def main(
    work_dir: Path | None, model: str, ratios: str, seeds: str, names: str, n_bytes: int, *, only_write: bool
) -> None:
    """Compute the cells that are not recorded yet, print and record."""
    quiet_libraries()
    source = open_source(model, cache())
    settings = {
        "model": source.name,
        "bytes_per_text": n_bytes,
        "calibration_tokens": CALIBRATION_TOKENS,
        "recovery_tokens": RECOVERY_TOKENS,
    }
    cells = Cells(result_name(RESULT, model), settings)
    if not only_write:
        if work_dir is None:
            raise click.UsageError("--work-dir is needed")
        texts = evaluation_texts(n_bytes, KINDS)
        cells.get("0|unpruned|0", lambda: score(source.directory, texts))
        for ratio, seed, name in (
            (float(r), int(s), name) for r in ratios.split(",") for s in seeds.split(",") for name in names.split(",")
        ):
            if seed and (ratio != SEEDED_RATIO or name in SEEDLESS):
                continue
            key = f"{ratio:g}|{name}|{seed}"
            cell = cells.get(key, lambda n=name, r=ratio, s=seed: measure(model, n, r, s, texts, work_dir))  # type: ignore[misc]
            print(key, cell.get("bits_per_byte", "-"), flush=True)
    print(show(cells.cells))
    if model == DOCUMENTED:
        write_table("quality.md", SCRIPT, document_part(cells.cells))
        replace_text(DOCS / PLOT, plot(cells.cells))
    elif work_dir is not None:
        replace_text(work_dir / PLOT, plot(cells.cells))


def document_part(cells: dict[str, dict[str, Any]]) -> str:
    """The part of docs/quality.md: the table, and the plot below it."""
    return f"{show(cells)}\n\n![Bits per byte of each method against its parameters]({PLOT})"


if __name__ == "__main__":
    main()
