"""What each calibration text, and each mix of them, does to four kinds of text: bits per byte of the pruned model.

    python benchmarks/calibration_mixes.py --bytes 12000

`smollm2-135m` at ratio 0.2, method `compact`, 32,768 tokens, in float32 through Transformers. Judge a mix by the kinds
of text that it does not hold; the table's `other kinds` is their mean. A finished row is kept and not computed again;
about 5 minutes a row on 2 cores. Writes the table of `docs/quality.md`.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from common import RESULTS, cache, data_folder, evaluation_texts, record, table, wikitext_train, write_table

from compact.cache import Cache
from compact.calibration import SELF, STDLIB, STDLIB_PROSE
from compact.evaluate import evaluate_checkpoint, read_text
from compact.prune import PruneOptions, calibration_for, make_plan, prune
from compact.source import ModelSource, open_source
from compact_edge.console import Console

NAME = "calibration-mixes"
WIKITEXT, PEPS = "wikitext", "peps"
MIXES: tuple[tuple[str, ...], ...] = (
    (STDLIB_PROSE,),
    (WIKITEXT, PEPS),
    (STDLIB,),
    (WIKITEXT,),
    (PEPS,),
    (SELF,),
    (SELF, STDLIB_PROSE),
    (SELF, STDLIB),
    (SELF, WIKITEXT, PEPS),
    (STDLIB_PROSE, WIKITEXT, PEPS),
)
# The kinds of evaluation text that a source is itself of. Both built-in texts are of the standard library.
_OWN_KIND = {WIKITEXT: "wikitext", PEPS: "technical", STDLIB: "stdlib", STDLIB_PROSE: "stdlib"}


def source_names(work: Path) -> dict[str, str]:
    """What `--calibration` takes for every source of the mixes; the two files hold the first 80% of their texts."""
    peps = work / "peps-first-80.txt"
    peps.write_text(read_text(data_folder() / "text" / "peps.txt", split="train"), encoding="utf-8")
    return {WIKITEXT: str(wikitext_train(work)), PEPS: str(peps), **{n: n for n in (SELF, STDLIB, STDLIB_PROSE)}}


def other_kinds(mix: Sequence[str], bits: Mapping[str, float]) -> float:
    """Mean bits per byte of the kinds of text that the mix does not hold."""
    own = {_OWN_KIND[name] for name in mix if name in _OWN_KIND}
    values = [value for kind, value in bits.items() if kind not in own]
    return sum(values) / len(values)


def finished(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows that an earlier run with these settings has recorded, by the mix."""
    path = RESULTS / f"{NAME}.json"
    value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if {key: value.get(key) for key in settings} != dict(settings):
        return {}
    return {row["mix"]: row for row in value["rows"]}


def bits_per_byte(directory: Path, texts: Mapping[str, str], label: str, console: Console) -> dict[str, float]:
    """Bits per byte of a checkpoint on every text."""
    found = {}
    for kind, text in texts.items():
        evaluation = evaluate_checkpoint(
            directory, text, device="cpu", dtype="float32", progress=console, label=f"{label}, {kind}"
        )
        found[kind] = round(evaluation.bits_per_byte, 4)
    return found


def measure(
    source: ModelSource, mix: Sequence[str], options: PruneOptions, texts: Mapping[str, str], store: Cache
) -> dict[str, Any]:
    """One row: draw, prune, evaluate."""
    console, label = Console(), " + ".join(mix)
    start = time.monotonic()
    calibration = calibration_for(source, options, cache=store, progress=console)
    drawn = time.monotonic() - start
    plan = make_plan(source, options, store, calibration=calibration, progress=console)
    with tempfile.TemporaryDirectory() as work:
        prune(source, plan, Path(work), progress=console)
        bits = bits_per_byte(Path(work), texts, label, console)
    return {
        "mix": label,
        "sources": [{"name": one, "tokens": of.tokens} for one, of in zip(mix, calibration.sources, strict=True)],
        "seconds_to_draw": round(drawn, 1),
        "vocab_size": plan.vocab_size,
        "intermediate_size": plan.intermediate_size,
        "bits_per_byte": bits,
        "other_kinds": round(other_kinds(mix, bits), 4),
    }


def show(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of the docs; a star marks text of a kind that the mix holds."""
    kinds = list(rows[0]["bits_per_byte"])
    lines = []
    for row in rows:
        bits, own = row["bits_per_byte"], {_OWN_KIND.get(name) for name in row["mix"].split(" + ")}
        cells = [f"{bits[kind]:.3f}" + ("*" if kind in own else "") for kind in kinds]
        others = "" if row["other_kinds"] is None else f"{row['other_kinds']:.3f}"
        lines.append([row["mix"], *cells, others])
    return table(["calibration", *kinds, "other kinds"], lines)


@click.command()
@click.option("--model", default="smollm2-135m", show_default=True)
@click.option("--ratio", default=0.2, show_default=True)
@click.option("--calibration-tokens", default=32768, show_default=True)
@click.option("--bytes", "n_bytes", default=24_000, show_default=True, help="Evaluated of every text.")
@click.option("--only", multiple=True, help="Only these mixes, each as 'a + b'.")
def main(model: str, ratio: float, calibration_tokens: int, n_bytes: int, only: tuple[str, ...]) -> None:
    """Measure what is not recorded yet, and write the table."""
    store, console = cache(), Console()
    source = open_source(model, store, console)
    texts = evaluation_texts(n_bytes)
    settings = {"model": source.name, "ratio": ratio, "tokens": calibration_tokens, "bytes_per_text": n_bytes}
    rows = finished(settings)
    order = ["unpruned", *(" + ".join(mix) for mix in MIXES)]

    def keep(row: dict[str, Any]) -> None:
        rows[row["mix"]] = row
        found = [rows[name] for name in order if name in rows]
        record(NAME, {**settings, "rows": found})
        write_table("quality.md", "calibration_mixes", show(found))
        print(show(found), flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        names = source_names(Path(scratch))
        for mix in MIXES:
            label = " + ".join(mix)
            if label in rows or (only and label not in only):
                continue
            options = PruneOptions(
                ratio=ratio,
                channel_grid=32,
                calibration=tuple(names[name] for name in mix),
                calibration_tokens=calibration_tokens,
            )
            keep(measure(source, mix, options, texts, store))
    if "unpruned" not in rows and not only:
        bits = bits_per_byte(source.directory, texts, "unpruned", console)
        keep({"mix": "unpruned", "bits_per_byte": bits, "other_kinds": None})


if __name__ == "__main__":
    main()
