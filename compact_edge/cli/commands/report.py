"""`compact-edge report`: shows one run of the bench, or compares several."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from compact_edge.flags import DIRECTORY


@click.command()
@click.argument("run", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=DIRECTORY, help="Write report.json, report.md and report.html to this new directory.")
@click.option("--force", is_flag=True, help="Replace an earlier output.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout.")
def report(run: tuple[Path, ...], out: Path | None, force: bool, as_json: bool) -> None:
    """Show one benchmark run, or compare several.

    RUN is an output directory of `compact-edge bench` or a report.json. From a directory, the report is made again from
    the raw records.

    Some runs are listed separately and never ranked: partial, emulated and unmeasured runs, and runs whose two
    artifacts differ in more than the pruning.
    """
    from compact.base.errors import UsageError
    from compact_edge.output import check_output
    from compact_edge.terminal.console import print_json
    from runtime_bench.report.combine import combine
    from runtime_bench.report.html import html
    from runtime_bench.report.markdown import markdown
    from runtime_bench.report.write import load_run

    if force and out is None:
        raise UsageError("--force needs --out, whose directory it replaces", "add --out DIR")
    if out is not None:
        check_output(out.absolute(), force=force, inputs=run)
    documents = [load_run(path) for path in run]
    if len(documents) == 1:
        made, shown = documents[0], _one(documents[0])
        texts = {"report.md": markdown(made), "report.html": html(made)} if out else {}
    else:
        combined = combine(documents)
        made, shown = combined["json"], _several(combined["json"])
        texts = {"report.md": combined["md"], "report.html": combined["html"]}
    if out is not None:
        _publish(out, made, texts, force)
    if as_json:
        print_json(made)
        return
    click.echo(shown)
    if out is not None:
        click.echo(f"\nwritten: {out / 'report.html'}, report.md, report.json")


def _publish(out: Path, made: Mapping[str, Any], texts: Mapping[str, str], force: bool) -> None:
    from compact.base.files import publish, write_json, write_sums, write_text

    with publish(out, force=force) as work:
        write_json(work / "report.json", made)
        for name, content in texts.items():
            write_text(work / name, content)
        write_sums(work)


def _one(document: Mapping[str, Any]) -> str:
    from compact_edge.terminal.console import format_table, one_line
    from runtime_bench.report.headline import budget_summary, why
    from runtime_bench.report.rows import metric_rows

    lines = [document["title"], document["summary"], *why(document), budget_summary(document)]
    rows = [(row.label, row.pruned, row.baseline, row.ratio, row.verdict) for row in metric_rows(document)]
    table = format_table(("METRIC", "PRUNED", "BASELINE", "RATIO [95% INTERVAL]", "VERDICT"), rows)
    return "\n".join([*(one_line(line) for line in lines if line), "", table])


def _several(document: Mapping[str, Any]) -> str:
    from compact_edge.terminal.console import format_table, one_line
    from runtime_bench.report.combine import apart_rows, table_rows

    blocks = []
    header, rows = table_rows(document, short=True)
    if rows:
        blocks.append(format_table([name.upper() for name in header], rows))
        blocks.append("× is the ratio to the run's own baseline on the same device")
    blocks += [one_line(note) for note in document["notes"]]
    apart = apart_rows(document)
    if apart:
        blocks.append("not ranked:\n" + format_table(("RUN", "DEVICE", "", "WHY"), apart))
    return "\n\n".join(blocks)
