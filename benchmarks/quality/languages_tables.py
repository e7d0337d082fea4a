"""The tables and the picture of `docs/languages-figures.md`, and the short table of README.md and `docs/languages.md`.

All come from the recorded cells of `languages.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.common import DOCS, RESULTS, ROOT, recorded, table, write_table
from compact_edge.terminal.plot import Panel, Series, document
from runtime_bench.report import svg

MODELS = ("gemma-3-270m", "qwen2.5-coder-0.5b", "smollm2-135m")
ENGLISH = ("wikitext", "technical", "fiction", "code")
RANKINGS = ("merges", "scripts", "corpus", "en,code")
PAGE, SHORT, PICTURE = "languages-figures.md", "languages.md", "languages.svg"
HANDBOOK = "handbook "

Cells = Mapping[str, Mapping[str, Any]]


def recorded_cells() -> dict[str, Cells]:
    """Model -> key `ranking|vocab_size|text` -> cell, of the models that were measured."""
    found = {model: RESULTS / f"languages-{model}.json" for model in MODELS}
    return {model: recorded(path.stem)["cells"] for model, path in found.items() if path.is_file()}


def _change(after: float, before: float) -> str:
    return f"{after:.3f} ({100 * (after / before - 1):+.1f}%)"


def _unpruned(cells: Cells) -> dict[str, Mapping[str, Any]]:
    """Text -> cell of the unpruned model."""
    return {key.split("|")[2]: cell for key, cell in cells.items() if key.startswith("unpruned|")}


def _sizes(cells: Cells, ranking: str, texts: tuple[str, ...]) -> list[int]:
    """Vocabulary sizes of a ranking that have all of these texts, the largest first."""
    named = {(key.split("|")[0], key.split("|")[2], int(key.split("|")[1])) for key in cells}
    sizes = {size for _, _, size in named}
    return sorted((s for s in sizes if all((ranking, text, s) in named for text in texts)), reverse=True)


def english_table(cells: Cells) -> str:
    """Bits per byte of the four English texts by vocabulary size and ranking."""
    before = _unpruned(cells)
    whole = next(iter(before.values()))["parameters"]
    rows = [["unpruned", "", f"{whole / 1e6:.1f}M", *(f"{before[text]['bits_per_byte']:.3f}" for text in ENGLISH)]]
    found = {(size, ranking) for ranking in RANKINGS for size in _sizes(cells, ranking, ENGLISH)}
    for size, ranking in sorted(found, key=lambda one: (-one[0], RANKINGS.index(one[1]))):
        row = {text: cells[f"{ranking}|{size}|{text}"] for text in ENGLISH}
        parameters = row[ENGLISH[0]]["parameters"]
        rows.append(
            [
                f"{size:,}",
                f"`--languages {ranking}`" if ranking == RANKINGS[-1] else ranking,
                f"{parameters / 1e6:.1f}M ({100 * (parameters / whole - 1):+.0f}%)",
                *(_change(row[text]["bits_per_byte"], before[text]["bits_per_byte"]) for text in ENGLISH),
            ]
        )
    return table(["vocab_size", "ranking", "parameters", *ENGLISH], rows)


def languages_table(cells: Cells) -> str:
    """Bits per byte of the handbook in each language of `--languages`, beside merge order at the same size."""
    before = _unpruned(cells)
    order = list(dict.fromkeys(key.split("|")[0] for key in cells))
    rows = []
    for key, cell in cells.items():
        ranking, size, text = key.split("|")
        if not text.startswith(HANDBOOK) or ranking in ("unpruned", "merges"):
            continue
        old, merges = before[text], cells.get(f"merges|{size}|{text}")
        rows.append(
            (
                (-int(size), order.index(ranking)),
                [
                    f"{int(size):,}",
                    f"`{ranking}`",
                    text.removeprefix(HANDBOOK),
                    f"{old['bits_per_byte']:.3f}",
                    "" if merges is None else _change(merges["bits_per_byte"], old["bits_per_byte"]),
                    _change(cell["bits_per_byte"], old["bits_per_byte"]),
                    "" if merges is None else _times(merges, old),
                    _times(cell, old),
                ],
            )
        )
    header = ["vocab_size", "`--languages`", "text", "unpruned", "cut by merge order", "cut by `--languages`"]
    header += ["tokens, merge order", "tokens, `--languages`"]
    return table(header, [row for _, row in sorted(rows, key=lambda one: one[0])])


def _times(cell: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    return f"{cell['tokens_per_character'] / before['tokens_per_character']:.2f}x"


def speed_table(found: Mapping[str, Cells]) -> str:
    """Size and decode speed of the Q8_0 file beside the unpruned one."""
    rows = []
    for model, cells in found.items():
        for key, cell in cells.items():
            if not key.startswith("speed|"):
                continue
            size = int(key.split("|")[1])
            whole, pruned = cell["file_bytes"]
            slow, fast = cell["characters_per_second"]
            low, high = cell["ratio_range"]
            rows.append(
                [
                    model,
                    f"{size:,}",
                    f"{whole / 1e6:.0f} MB",
                    f"{pruned / 1e6:.0f} MB ({pruned / whole:.2f})",
                    f"{slow:,.0f}",
                    f"{fast:,.0f}",
                    f"{cell['ratio']:.2f} [{low:.2f}, {high:.2f}]",
                ]
            )
    header = ["model", "vocab_size", "file, unpruned", "file, pruned", "characters/s, unpruned", "pruned", "ratio"]
    return table(header, rows)


def short_table(cells: Cells) -> str:
    """For README and docs/languages.md: each size by `--languages`, its loss and its speed."""
    before = _unpruned(cells)
    whole = next(iter(before.values()))["parameters"]
    rows = []
    for size in _sizes(cells, RANKINGS[-1], ENGLISH):
        row = {text: cells[f"{RANKINGS[-1]}|{size}|{text}"] for text in ENGLISH}
        parameters = row[ENGLISH[0]]["parameters"]
        losses = (row[text]["bits_per_byte"] / before[text]["bits_per_byte"] - 1 for text in ENGLISH)
        speed = cells.get(f"speed|{size}|fiction")
        rows.append(
            [
                f"{size:,}",
                f"{100 * (parameters / whole - 1):+.0f}%",
                *(f"{100 * loss:+.1f}%" for loss in losses),
                "" if speed is None else f"{speed['ratio']:.2f}x",
            ]
        )
    return table(["vocab_size", "parameters", *ENGLISH, "decode, characters/s"], rows)


def picture(found: Mapping[str, Cells]) -> str:
    """Mean loss over the four English texts by vocabulary size, a panel for each model."""
    panels, summary = [], []
    for model, cells in found.items():
        before = _unpruned(cells)
        series = []
        for style, ranking in enumerate(RANKINGS):
            points = []
            for size in sorted(_sizes(cells, ranking, ENGLISH)):
                losses = [
                    cells[f"{ranking}|{size}|{text}"]["bits_per_byte"] / before[text]["bits_per_byte"] - 1
                    for text in ENGLISH
                ]
                points.append(svg.Point(size / 1000, 100 * sum(losses) / len(losses)))
            if points:
                tips = tuple(f"{ranking}, {1000 * point.x:,.0f} tokens: {point.y:+.1f}%" for point in points)
                series.append(Series(ranking, tuple(points), tips, style))
                summary.append(f"{model}, {tips[0]}")
        panels.append(
            Panel(model, "vocab_size, thousands", "bits per byte, % above unpruned, mean of 4 texts", tuple(series))
        )
    return document(
        panels, "What a vocabulary cut costs, by ranking", f"Loss at the smallest size: {'; '.join(summary)}."
    )


def write_page() -> None:
    """Write the tables and the picture, from the recorded cells."""
    found = recorded_cells()
    parts = []
    for model, cells in found.items():
        n_bytes = recorded(f"languages-{model}")["settings"]["bytes_per_text"]
        parts += [f"### {model}, {n_bytes:,} bytes of each text", english_table(cells)]
    for model, cells in found.items():
        if any(HANDBOOK in key and not key.startswith("unpruned") for key in cells):
            parts += [f"### {model}: prose in the requested languages", languages_table(cells)]
    if any(key.startswith("speed|") for cells in found.values() for key in cells):
        parts += ["### Size and speed", speed_table(found)]
    texts = {DOCS / PAGE: "\n\n".join(parts)}
    if MODELS[0] in found:
        texts[ROOT / "README.md"] = texts[DOCS / SHORT] = short_table(found[MODELS[0]])
    for path, rows in texts.items():
        write_table(path, "quality.languages", rows)
    (DOCS / PICTURE).write_text(picture(found), encoding="utf-8")
