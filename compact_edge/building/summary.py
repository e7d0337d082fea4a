"""Prints the summary of a build: a table of the model before and after pruning at one type, and the next commands."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

import click

from compact_edge.building import method_report, vocabulary_report
from compact_edge.building.search_report import print_search
from compact_edge.terminal.console import one_line

if TYPE_CHECKING:
    from compact_edge.building.result import BuildResult, FormatResult, VariantResult
    from exporters.format_values import Measurements

_REPLY_WIDTH = 600


def rows(outcome: FormatResult, dtype: str) -> list[tuple[str, str, str, str]]:
    """Return the rows of the table as (quantity, before, after, change).

    Before and change are empty with `--no-baseline`. A value that was not measured on this machine is `-`.
    """
    before, after = outcome.before, outcome.after

    def row(name: str, value: Callable[[VariantResult], float | None], shown_as: str) -> tuple[str, str, str, str]:
        new = value(after)
        shown = "-" if new is None else shown_as.format(new)
        if before is None:
            return name, "", shown, ""
        old = value(before)
        change = f"{new / old - 1:+.1%}" if old and new is not None else ""
        return name, "-" if old is None else shown_as.format(old), shown, change

    def short_run(name: str, value: Callable[[Measurements], float], shown_as: str) -> tuple[str, str, str, str]:
        return row(f"{name} *", lambda c: None if c.measured is None else value(c.measured), shown_as)

    return [
        row("parameters", lambda c: c.parts["total"] / 1e6, "{:.2f}M"),
        row("file size", lambda c: c.variant.artifact.size_bytes / 1e6, "{:.2f} MB"),
        row("bits per weight", lambda c: c.variant.artifact.bits_per_weight, "{:.2f}"),
        short_run("resident memory", lambda m: m.speed.resident_bytes / 1e6, "{:.0f} MB"),
        short_run("prefill, tokens/s", lambda m: m.prefill, "{:,.1f}"),
        short_run("decode, tokens/s", lambda m: m.decode, "{:,.1f}"),
        short_run("decode, characters/s", lambda m: m.decode * m.characters_per_token, "{:,.0f}"),
        row(f"bits per byte, {dtype}", lambda c: c.evaluation.bits_per_byte, "{:.3f}"),
        row(
            f"bits per byte, {after.variant.artifact.quant}",
            lambda c: None if c.artifact_evaluation is None else c.artifact_evaluation.bits_per_byte,
            "{:.3f}",
        ),
    ]


def losses(outcome: FormatResult, dtype: str) -> list[str]:
    """Return lines on pruning loss and quantisation loss, in bits per byte."""
    after = outcome.after
    lines = []
    if outcome.before is not None:
        pruning = after.evaluation.bits_per_byte - outcome.before.evaluation.bits_per_byte
        lines.append(f"pruning loss {pruning:+.3f} bits per byte ({dtype}, after - before)")
    if after.artifact_evaluation is not None:
        quant = after.artifact_evaluation.bits_per_byte - after.evaluation.bits_per_byte
        types = f"{after.variant.artifact.quant} - {dtype}"
        lines.append(f"quantisation loss {quant:+.3f} bits per byte ({types}, after pruning)")
    return lines


def print_summary(result: BuildResult) -> None:
    """Print the summary to stdout."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    # On a terminal, wrap text at words. A pipe or a log has no width. rich would assume 80 and wrap lines there too.
    soft = not console.is_terminal
    threads = f"{result.compute.threads} thread{'s' * (result.compute.threads > 1)}"
    dtype = result.compute.dtype
    if result.plan.search is not None:
        print_search(result.plan.search)
    for outcome in result.formats:
        after = outcome.after
        name = f"{result.source.name}, {after.variant.artifact.quant}"
        if len(result.formats) > 1:
            name += f" ({outcome.format.name})"
        table = Table(title=Text(one_line(name)), box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
        table.add_column("")
        for column in ("before", "after", "change"):
            table.add_column(column, justify="right", no_wrap=True)
        for row in rows(outcome, dtype):
            table.add_row(*row)
        console.print()
        console.print(table)
        fine = (
            f"* a short run on this machine with {outcome.format.engine}, {threads}; "
            f"bits per byte on {result.eval_name} ({after.evaluation.n_bytes:,} bytes, lower is better)"
        )
        place = [] if outcome.place is None else [outcome.place]
        for line in (fine, *losses(outcome, dtype), *place, *_parity(after)):
            console.print(Text(one_line(line)), soft_wrap=soft)
    for line in method_report.gain_lines(result.plan, result.pruning):
        console.print(Text(one_line(line)), soft_wrap=soft)
    for line in vocabulary_report.lines(result.plan, result.languages):
        console.print(Text(one_line(line)), soft_wrap=soft)
    console.print()
    _print_replies(result, None if soft else console.width)
    size = max(outcome.after.variant.artifact.size_bytes for outcome in result.formats)
    for line in (*method_report.less_loss(result.source, result.plan, result.pruning, size), *next_commands(result)):
        click.echo(line)


def _parity(after: VariantResult) -> list[str]:
    report = after.parity
    if report is None:
        return ["parity gate: skipped (--no-check)"]
    word = f"passed in part, {report.why_partial}" if report.partial else "passed"
    return [f"parity gate: {word}", *(f"- {check.name}: {check.detail}" for check in report.checks)]


def _print_replies(result: BuildResult, width: int | None) -> None:
    """Print the prompt and the reply of each model. Wrap lines at `width` columns; None does not wrap."""
    click.echo(f"prompt: {one_line(result.prompt)}")
    for outcome in result.formats:
        of = f", {outcome.format.name}" if len(result.formats) > 1 else ""
        for name, variant in (("before", outcome.before), ("after", outcome.after)):
            if variant is None or variant.measured is None or variant.measured.reply is None:
                continue
            reply = variant.measured.reply
            short = reply if len(reply) <= _REPLY_WIDTH else reply[:_REPLY_WIDTH] + " ..."
            lines = [one_line(line) for line in short.splitlines() if line.strip()] or ["(no text)"]
            if width is not None:
                lines = [part for line in lines for part in wrap(line, max(20, width - 4))]
            click.echo("\n    ".join((f"{name}{of}:", *lines)))
    click.echo()


def next_commands(result: BuildResult) -> list[str]:
    """Return lines with the next commands, ready to paste."""
    here = Path.cwd()
    path = result.out.relative_to(here) if result.out.is_relative_to(here) else result.out
    lines = [f"wrote {result.out}", "next:", f"  compact-edge verify {shlex.quote(str(path))}"]
    for outcome in result.formats:
        variant = outcome.after.variant
        folder = path / outcome.format.name
        opened = shlex.quote(str(outcome.format.published(folder, outcome.files)))
        lines.append(f"  compact-edge eval {opened} --text YOUR_TEXT")
        lines += [f"  {line}" for line in outcome.format.commands(folder, outcome.files, variant.checkpoint)]
        if any((result.out / name).is_dir() for name in ("baseline", f"baseline-{outcome.format.name}")):
            lines.append(f"  compact-edge bench {shlex.quote(str(folder))}")
    return lines
