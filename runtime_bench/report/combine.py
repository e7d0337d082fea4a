"""Put several runs in one table, to compare devices, quantizations or ratios.

Runs are ranked by the pruned model's characters per second. A run is ranked only if it is
complete, ran on a real device, and its two artifacts differ only in the pruning. Runs are compared only with runs of
the same engine, prompts and settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from runtime_bench.report import page
from runtime_bench.report.charts import RatioRow, ratios
from runtime_bench.report.headline import standing, why
from runtime_bench.report.markdown import grid, text
from runtime_bench.report.rows import first_metric
from runtime_bench.report.words import NONE, device_name, engine_name, figure, plain, ratio_words, subject_name

SCHEMA = "compact-edge/bench-comparison/1"
SPEED = "characters_per_s"
# (key of the comparison, keys of the document, heading). The first key that exists is used.
_COLUMNS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (SPEED, (SPEED,), "characters/s"),
    ("ttft", ("ttft_s:chat", "ttft_s:"), "TTFT"),
    ("memory", ("peak_rss_bytes", "private_bytes"), "memory"),
    ("size", ("size_bytes",), "file size"),
    ("bits_per_byte", ("bits_per_byte",), "bits per byte"),
)
# Settings that change speed or memory -> their name for a reader.
_SETTINGS: Mapping[str, str] = {
    "threads": "threads",
    "context": "context",
    "new_tokens": "new tokens",
    "gpu_layers": "GPU layers",
    "execution_provider": "execution provider",
}


class Combined(TypedDict):
    """The comparison as a JSON document, a Markdown page and an HTML page."""

    json: dict[str, Any]
    md: str
    html: str


def combine(documents: Sequence[Mapping[str, Any]]) -> Combined:
    """Compare runs.

    Args:
        documents: at least one content of report.json, checked by `read_document`.
    """
    document = compare(documents)
    return {"json": document, "md": _markdown(document), "html": _html(document)}


def compare(documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the comparison as plain values.

    `groups` has the comparable runs, best first; `apart` has the runs without a rank.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    apart = []
    ways: dict[str, set[str]] = {}
    for document in documents:
        ways.setdefault(device_name(document), set()).add(document["device_spec"])
    for document in documents:
        entry = _entry(document)
        if len(ways[entry["device"]]) > 1:  # two devices of one model, or one device over two transports
            entry["device"] += f" ({document['device_spec'].partition(':')[0]})"
        if standing(document):
            apart.append(entry | {"marks": standing(document), "why": why(document)})
        else:
            groups.setdefault(_comparable(document), []).append(entry)
    made = []
    for number, runs in enumerate(groups.values()):
        runs.sort(key=_speed, reverse=True)
        for rank, run in enumerate(runs, 1):
            # A single run gets no rank, nor does a run without a speed.
            run["rank"] = rank if len(runs) > 1 and _speed(run) > 0 else None
        alike = {key: runs[0][key] for key in ("engine", "prompts", "settings")}
        made.append({"name": _letter(number), **alike, "runs": runs})
    return {
        "schema": SCHEMA,
        "title": f"{len(documents)} runs" if len(documents) != 1 else "1 run",
        "groups": made,
        "apart": apart,
        "notes": _differences(list(groups)),
    }


def table_rows(document: Mapping[str, Any], *, short: bool = False) -> tuple[list[str], list[list[str]]]:
    """Return the header and rows of the ranked runs as text. With `short`, only the speed has an interval."""
    header = [
        "run",
        "rank",
        "device",
        "engine",
        "threads",
        "context",
        *(heading for _, _, heading in _COLUMNS),
        "budgets met",
    ]
    several = len(document["groups"]) > 1
    rows = []
    for group in document["groups"]:
        for run in group["runs"]:
            rank = "" if run["rank"] is None else str(run["rank"])
            place = f"{group['name']} {rank}".rstrip() if several else rank or NONE
            show = _shown_short if short else _shown
            figures = [show(run["metrics"].get(key)) for key, _, _ in _COLUMNS]
            how = [run["engine"], *(run["settings"].get(key, NONE) for key in ("threads", "context"))]
            rows.append([run["name"], place, run["device"], *how, *figures, _budgets(run["budgets"])])
    return header, rows


def apart_rows(document: Mapping[str, Any]) -> list[list[str]]:
    """Return (run, device, marks, reason) of the runs that are not ranked."""
    return [[run["name"], run["device"], ", ".join(run["marks"]), "; ".join(run["why"])] for run in document["apart"]]


def _entry(document: Mapping[str, Any]) -> dict[str, Any]:
    metrics = {}
    for key, keys, _ in _COLUMNS:
        found = first_metric(document, keys)
        if found is not None:
            names = ("key", "unit", "pruned", "baseline", "ratio", "verdict")
            metrics[key] = {name: found[name] for name in names}
    return {
        "name": subject_name(document),
        "device": device_name(document),
        "engine": engine_name(document),
        "settings": {key: plain(document["settings"][key]) for key in _SETTINGS if key in document["settings"]},
        "created": document["created"],
        "pairs": document["pairs"],
        "prompts": [prompt["name"] for prompt in document["prompts"] if prompt["skipped"] is None],
        "rank": None,
        "metrics": metrics,
        "budgets": {
            name: [budget["name"] for budget in document["budgets"] if budget["passed"] is passed]
            for name, passed in (("met", True), ("exceeded", False), ("not_judged", None))
        },
    }


def _comparable(document: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the values that must be equal before two speeds can be compared."""
    prompts = sorted((prompt["name"], prompt["sha256"]) for prompt in document["prompts"] if prompt["skipped"] is None)
    settings = (plain(document["settings"].get(key)) for key in _SETTINGS)
    return engine_name(document), tuple(prompts), *settings


def _differences(groups: Sequence[tuple[Any, ...]]) -> list[str]:
    """Return the differences between the groups in one line, empty for one group."""
    columns = zip(("engine", "prompts", *_SETTINGS.values()), zip(*groups, strict=True), strict=True) if groups else ()
    names = [name for name, values in columns if len(set(values)) > 1]
    return [f"Groups differ in {', '.join(names)}: speeds are not comparable between them."] if names else []


def _speed(run: Mapping[str, Any]) -> float:
    found = run["metrics"].get(SPEED)
    return 0.0 if found is None or found["pruned"] is None else float(found["pruned"]["median"])


def _letter(number: int) -> str:
    """Return A, B, ... Z, AA, AB, ..., as the columns of a spreadsheet are named."""
    letters = ""
    number += 1
    while number:
        number, place = divmod(number - 1, 26)
        letters = chr(ord("A") + place) + letters
    return letters


def _shown(metric: Mapping[str, Any] | None) -> str:
    if metric is None or metric["pruned"] is None:
        return NONE
    value = figure(metric["pruned"]["median"], metric["unit"]).removesuffix(" characters/s")
    return value if metric["ratio"] is None else f"{value}, ratio {ratio_words(metric['ratio'])}"


def _shown_short(metric: Mapping[str, Any] | None) -> str:
    value, separator, ratio = _shown(metric).partition(", ratio ")
    if metric is not None and metric["key"] != SPEED:
        ratio = ratio.partition(" ")[0]
    return f"{value} ×{ratio}" if separator else value


def _budgets(budgets: Mapping[str, Sequence[str]]) -> str:
    total = sum(len(names) for names in budgets.values())
    text = f"{len(budgets['met'])} of {total}" if total else NONE
    return f"{text}, exceeded: {', '.join(budgets['exceeded'])}" if budgets["exceeded"] else text


def _explained(document: Mapping[str, Any]) -> str:
    line = (
        "Medians of the pruned model. Ratios are to the run's own baseline on the same device, with the 95% interval."
    )
    return " ".join([line, *document["notes"]])


def _markdown(document: Mapping[str, Any]) -> str:
    blocks = [f"### compact-edge bench: {text(document['title'])}"]
    header, rows = table_rows(document)
    if rows:
        blocks.append(text(_explained(document)))
        blocks.append(grid(header, [[text(cell) for cell in row] for row in rows], "l" * len(header)))
    if document["apart"]:
        blocks.append("**Not ranked**")
        cells = [
            [text(name), text(device), f"**{text(marks)}**", text(reason)]
            for name, device, marks, reason in apart_rows(document)
        ]
        blocks.append(grid(("run", "device", "", "why"), cells, "llll"))
    return "\n\n".join(blocks) + "\n"


def _html(document: Mapping[str, Any]) -> str:
    header, rows = table_rows(document)
    body = [
        '<header><p class="kicker">On-device latency report</p>'
        f"<h1>{page.words(document['title'])} compared</h1></header>"
    ]
    body += [f'<div class="warn" role="note"><p>{page.words(note)}</p></div>' for note in document["notes"]]
    plotted = _plot(document)
    if plotted:
        body.append(page.section("Speed against the run's own baseline", plotted))
    if rows:
        cells = [
            page.row(
                name,
                [
                    page.cell("rank", page.words(place)),
                    page.cell(
                        "device",
                        f"<span>{page.words(device)}<br>{_soft(engine)}<br>"
                        f"{_soft(f'threads {threads}, context {context}')}</span>",
                    ),
                    *(
                        page.cell(heading, _stacked(value))
                        for (_, _, heading), value in zip(_COLUMNS, figures, strict=True)
                    ),
                    page.cell("budgets met", page.words(budgets)),
                ],
            )
            for name, place, device, engine, threads, context, *figures, budgets in rows
        ]
        heads = [(name, "") for name in header if name not in ("engine", "threads", "context")]
        table = page.table(_explained(document), heads, [page.body(cells)])
        body.append(page.section("Runs", f'<div class="sheet wide">{table}</div>'))
    if document["apart"]:
        heads = [("run", ""), ("device", ""), ("", ""), ("why", "")]
        cells = [
            page.row(
                name,
                [
                    page.cell("device", page.words(device)),
                    page.cell("", f'<span class="tag bad">{page.words(marks)}</span>'),
                    page.cell("why", page.words(reason)),
                ],
            )
            for name, device, marks, reason in apart_rows(document)
        ]
        table = page.table("None of these runs can be ranked.", heads, [page.body(cells)])
        body.append(page.section("Not ranked", f'<div class="sheet">{table}</div>'))
    return page.page(f"{document['title']} compared", body)


def _stacked(value: str) -> str:
    """Return a value as HTML, with its ratio and the interval on separate lines."""
    first, ratio, rest = value.partition(", ratio ")
    if not ratio:
        return page.words(value)
    # "0.88 [0.87, 0.89]" or "0.80 (exact)"
    middle, _, note = rest.partition(" ")
    lines = [page.words(first), _soft(f"ratio {middle}"), *([_soft(note)] if note else [])]
    return f'<span class="stack">{"<br>".join(lines)}</span>'


def _soft(value: str) -> str:
    return f'<span class="plain">{page.words(value)}</span>'


def _plot(document: Mapping[str, Any]) -> str:
    several = len(document["groups"]) > 1
    rows = []
    for group in document["groups"]:
        for run in group["runs"]:
            metric = run["metrics"].get(SPEED)
            if metric is None or metric["ratio"] is None:
                continue
            ratio = metric["ratio"]
            rows.append(
                RatioRow(
                    name=_cut(f"{group['name']}: {run['name']}" if several else run["name"], 42),
                    note=_cut(run["device"], 24),
                    words=ratio_words(ratio),
                    median=ratio["median"],
                    low=ratio["low"],
                    high=ratio["high"],
                    tone=page.tone(metric["verdict"]),
                )
            )
    if not rows:
        return ""
    heading = "Characters per second, pruned / baseline"
    drawing = ratios("ratios", heading, rows, "slower than its baseline | faster")
    return page.plot(heading, "Each run against its own baseline on the same device.", drawing, wide=True)


def _cut(words: str, length: int) -> str:
    return words if len(words) <= length else f"{words[: length - 1]}…"
