"""How a budget is shared between vocabulary and FFN: the fixed rule beside the search (`--split auto`), and the curve.

    python benchmarks/splits.py            # both at three ratios
    python benchmarks/splits.py --curve    # docs/curve.svg, by `compact-edge curve`

`smollm2-135m`, calibrated on 32,768 tokens of the first 80% of WikiText-2's validation text and of the Python
enhancement proposals in equal shares; the search judges on text of both that it holds out. The table is of the last 20%
of both, and of fiction, in float32. A finished row is kept; a search takes about 10 minutes on 2 cores. Writes the
table of `docs/quality.md`.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from common import (
    DOCS,
    DOCUMENTED,
    Cells,
    bits_per_byte,
    cache,
    evaluation_texts,
    pruned_checkpoint,
    result_name,
    table,
    texts_to_learn_from,
    write_table,
)

from compact.prune_options import PruneOptions
from compact.sizes import parts_at
from compact.source import open_source
from compact_edge import cli
from compact_edge.console import Console

NAME = "splits"
KINDS = ("wikitext", "technical", "fiction")
CURVE = "curve.svg"


def show(cells: dict[str, dict[str, Any]]) -> str:
    """The table: sizes and bits per byte of each ratio and split."""
    lines = []
    for name, cell in cells.items():
        ratio, split = name.split("|")
        bits = [f"{cell['bits_per_byte'][kind]:.3f}" for kind in KINDS]
        sizes = [f"{cell['parameters'] / 1e6:.1f}M", str(cell["vocab_size"]), str(cell["intermediate_size"])]
        lines.append([ratio, split, *sizes, *bits])
    lines.sort(key=lambda line: (float(line[0]), line[1] == "auto"))
    return table(["ratio", "split", "parameters", "vocab_size", "intermediate_size", *KINDS], lines)


def draw_curve(model: str) -> None:
    """`docs/curve.svg`, as the command draws it."""
    texts = [word for path in texts_to_learn_from().values() for word in ("--calibration", path)]
    with tempfile.TemporaryDirectory() as work:
        out = Path(work) / "curve"
        code = cli.run(["curve", model, "--quant", "IQ4_NL", *texts, "--out", str(out)])
        if code:
            raise SystemExit(code)
        shutil.copyfile(out / CURVE, DOCS / CURVE)


@click.command()
@click.option("--model", default=DOCUMENTED, show_default=True)
@click.option("--ratios", default="0.1,0.2,0.35", show_default=True)
@click.option("--bytes", "n_bytes", default=24_000, show_default=True, help="Evaluated of every text.")
@click.option("--curve", is_flag=True, help="Draw the curve instead.")
def main(model: str, ratios: str, n_bytes: int, *, curve: bool) -> None:
    """Compute the rows that are not there yet, print and record; or draw the curve."""
    if curve:
        draw_curve(model)
        return
    store = cache()
    source = open_source(model, store, Console())
    texts = evaluation_texts(n_bytes, KINDS)
    cells = Cells(result_name(NAME, model), {"model": source.name, "bytes_per_text": n_bytes})
    calibration = tuple(texts_to_learn_from().values())
    fixed = PruneOptions(channel_grid=32, calibration=calibration)

    def score(options: PruneOptions) -> dict[str, Any]:
        made = pruned_checkpoint(source, options, store)
        sizes = asdict(made.plan.sizes) | {"parameters": parts_at(source, made.plan.sizes).total}
        return {**sizes, "bits_per_byte": bits_per_byte(made.directory, texts), "search": made.plan.search}

    for ratio in map(float, ratios.split(",")):
        for name, split in (("fixed rule", None), ("auto", "auto")):
            cells.get(f"{ratio:g}|{name}", lambda r=ratio, s=split: score(replace(fixed, ratio=r, split=s)))  # type: ignore[misc]
    print(show(cells.cells))
    if model == DOCUMENTED:
        write_table("quality.md", NAME, show(cells.cells))


if __name__ == "__main__":
    main()
