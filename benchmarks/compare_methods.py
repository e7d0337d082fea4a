"""COMPACT beside other ways to make a model smaller, at equal parameter counts, on three kinds of text.

    python benchmarks/compare_methods.py --work-dir DIR
    python benchmarks/compare_methods.py --work-dir DIR --ratios 0.2 --seeds 0     # a part; the rest another time
    python benchmarks/compare_methods.py --write                                  # table and plot from what is there

Every method (`methods.py`) runs in a process of its own, with its seconds and peak memory; its checkpoint is then
scored in float32 through Transformers. Calibrated on 32,768 tokens of encyclopedic and technical text in equal shares
(their first 80%); fiction is a kind that no method has seen. A finished cell is kept; a cell takes 3 minutes.
Writes the table of `docs/quality.md` and `docs/methods.svg`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import click
from common import DOCS, Cells, bits_per_byte, cache, evaluation_texts, table, write_table
from methods import CALIBRATION_TOKENS, METHODS, RECOVERY_TOKENS, SEEDLESS

from compact.source import open_source
from compact.tokenizer import encode, load_tokenizer

NAME = "compare_methods"
KINDS = ("wikitext", "technical", "fiction")
SEEDED_RATIO = 0.2


def run_method(name: str, ratio: float, seed: int, out: Path) -> dict[str, Any]:
    """One method in a process of its own."""
    script = str(Path(__file__).with_name("methods.py"))
    command = [sys.executable, script, name, "--ratio", str(ratio), "--seed", str(seed), "--out", str(out)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    value: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return value


def measure(name: str, ratio: float, seed: int, texts: dict[str, str], work: Path) -> dict[str, Any]:
    """A cell: the method's cost and what its model scores."""
    out = work / f"{name.replace(' ', '-')}-{ratio:g}-{seed}"
    cell = run_method(name, ratio, seed, out)
    if "impossible" in cell:
        return cell
    return {**cell, **score(out, texts)}


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


def by_row(cells: dict[str, dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """(ratio, method) -> its cells of all seeds."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for key, cell in cells.items():
        ratio, method, _ = key.split("|")
        rows.setdefault((ratio, method), []).append(cell)
    return rows


def show(cells: dict[str, dict[str, Any]]) -> str:
    """The table; where there are several seeds, their mean and half their range."""
    lines = []
    for (ratio, method), group in sorted(by_row(cells).items(), key=lambda item: (float(item[0][0]), _place(item))):
        if "impossible" in group[0]:
            lines.append([ratio, method, *["-"] * (len(KINDS) + 4)])
            continue
        bits = [_spread([cell["bits_per_byte"][kind] for cell in group]) for kind in KINDS]
        lengths = mean(mean(cell["tokens_per_byte"].values()) for cell in group)
        cost = ["-", "-"]
        if "seconds" in group[0]:
            cost = [f"{mean(c['seconds'] for c in group):.0f}", f"{max(c['peak_bytes'] for c in group) / 1e9:.1f}"]
        lines.append([ratio, method, f"{group[0]['parameters'] / 1e6:.1f}M", *bits, f"{lengths:.3f}", *cost])
    return table(["ratio", "method", "parameters", *KINDS, "tokens/byte", "s", "GB"], lines)


def _place(item: tuple[tuple[str, str], list[dict[str, Any]]]) -> int:
    names = ["unpruned", *METHODS]
    return names.index(item[0][1])


def _spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{mean(values):.3f} ±{(max(values) - min(values)) / 2:.3f}"


def plot(cells: dict[str, dict[str, Any]]) -> str:
    """Mean bits per byte of the three kinds against parameters, a line a method."""
    from runtime_bench.report.plots import curves

    return curves(cells)


@click.command()
@click.option("--work-dir", type=click.Path(path_type=Path), help="Holds the checkpoints (about 250 MB each).")
@click.option("--model", default="smollm2-135m", show_default=True)
@click.option("--ratios", default="0.2,0.1,0.35", show_default=True)
@click.option("--seeds", default="0,1,2", show_default=True, help="Other seeds than 0 at ratio 0.2 only.")
@click.option("--methods", "names", default=",".join(METHODS), help="Some of the methods.")
@click.option("--bytes", "n_bytes", default=64_000, show_default=True, help="Evaluated of every text.")
@click.option("--write", "only_write", is_flag=True, help="Write the documents from what is recorded.")
def main(
    work_dir: Path | None, model: str, ratios: str, seeds: str, names: str, n_bytes: int, *, only_write: bool
) -> None:
    """Compute the cells that are not there yet, print and record."""
    source = open_source(model, cache())
    settings = {
        "model": source.name,
        "bytes_per_text": n_bytes,
        "calibration_tokens": CALIBRATION_TOKENS,
        "recovery_tokens": RECOVERY_TOKENS,
    }
    cells = Cells(NAME.replace("_", "-"), settings)
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
            cell = cells.get(key, lambda n=name, r=ratio, s=seed: measure(n, r, s, texts, work_dir))  # type: ignore[misc]
            print(key, cell.get("bits_per_byte", "-"), flush=True)
    print(show(cells.cells))
    write_table("quality.md", NAME, show(cells.cells))
    (DOCS / "methods.svg").write_text(plot(cells.cells), encoding="utf-8")


if __name__ == "__main__":
    main()
