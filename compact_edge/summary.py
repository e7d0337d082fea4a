"""The closing summary of a build: one small table, before -> after at the same type, and what to do next."""

from __future__ import annotations

import shlex
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import click

from compact.languages import WARNING_RATIO
from compact_edge.console import one_line
from exporters.card import has_chat_template

if TYPE_CHECKING:
    from compact_edge.build import BuildResult, Compared

_REPLY_WIDTH = 600


def as_json(result: BuildResult) -> dict[str, Any]:
    """The result for `--json`: everything the summary says, with timings marked as this machine's."""
    return {
        "out": str(result.out),
        "model": result.source.name,
        "hub": result.source.hub_reference,
        "target": result.profile.name,
        "plan_id": result.plan.id,
        "artifact": result.files[0],
        "artifact_files": list(result.files),
        "before": None if result.before is None else _side(result.before),
        "after": _side(result.after),
        "evaluation_text": result.eval_name,
        "languages": [
            {"language": cost.language, "before": cost.before, "after": cost.after} for cost in result.languages
        ],
        "prompt": result.prompt,
        "threads": result.compute.threads,
        "dtype": result.compute.dtype,
        "parity": None if result.after.parity is None else result.after.parity.as_dict(),
        "notes": result.notes,
        "stages_reused": result.reused,
    }


def _side(compared: Compared) -> dict[str, Any]:
    artifact = compared.side.artifact
    return {
        "parameters": compared.parts,
        "quant": artifact.quant,
        "size_bytes": artifact.size_bytes,
        "bits_per_weight": artifact.summary.bits_per_weight,
        "bits_per_byte": {
            "checkpoint": compared.evaluation.bits_per_byte,
            "artifact": compared.artifact_evaluation.bits_per_byte,
        },
        "this_machine": compared.measured.as_dict(),
    }


def rows(result: BuildResult) -> list[tuple[str, str, str, str]]:
    """(quantity, before, after, change) of the table; before and change are empty with `--no-baseline`."""
    before, after = result.before, result.after
    return [
        _row("parameters", before, after, lambda c: c.parts["total"] / 1e6, "{:.2f}M"),
        _row("file size", before, after, lambda c: c.side.artifact.size_bytes / 1e6, "{:.2f} MB"),
        _row("bits per weight", before, after, lambda c: c.side.artifact.summary.bits_per_weight, "{:.2f}"),
        _row("resident memory *", before, after, lambda c: c.measured.speed.resident_bytes / 1e6, "{:.0f} MB"),
        _row("prefill, tokens/s *", before, after, lambda c: c.measured.prefill, "{:,.1f}"),
        _row("decode, tokens/s *", before, after, lambda c: c.measured.decode, "{:,.1f}"),
        _row(
            "decode, characters/s *",
            before,
            after,
            lambda c: c.measured.decode * c.measured.characters_per_token,
            "{:,.0f}",
        ),
        _row(f"bits per byte, {result.compute.dtype}", before, after, lambda c: c.evaluation.bits_per_byte, "{:.3f}"),
        _row(
            f"bits per byte, {after.side.artifact.quant}",
            before,
            after,
            lambda c: c.artifact_evaluation.bits_per_byte,
            "{:.3f}",
        ),
    ]


def _row(name: str, before: Compared | None, after: Compared, value: Any, form: str) -> tuple[str, str, str, str]:
    new = value(after)
    if before is None:
        return name, "", form.format(new), ""
    old = value(before)
    return name, form.format(old), form.format(new), f"{new / old - 1:+.1%}" if old else ""


def losses(result: BuildResult) -> list[str]:
    """Pruning loss and quantisation loss apart, in bits per byte."""
    after = result.after
    quant = after.artifact_evaluation.bits_per_byte - after.evaluation.bits_per_byte
    lines = []
    if result.before is not None:
        pruning = after.evaluation.bits_per_byte - result.before.evaluation.bits_per_byte
        lines.append(f"pruning loss {pruning:+.3f} bits per byte ({result.compute.dtype}, after - before)")
    types = f"{after.side.artifact.quant} - {result.compute.dtype}"
    lines.append(f"quantisation loss {quant:+.3f} bits per byte ({types}, after pruning)")
    return lines


def print_summary(result: BuildResult) -> None:
    """Write the summary to stdout, as a table on every kind of terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    # Prose is wrapped at words on a terminal. A pipe or a log has no width; rich would guess 80 and wrap there too.
    soft = not console.is_terminal
    artifact = result.after.side.artifact
    title = Text(one_line(f"{result.source.name}, {artifact.quant}"))
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.add_column("")
    for name in ("before", "after", "change"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows(result):
        table.add_row(*row)
    console.print()
    console.print(table)
    threads = f"{result.compute.threads} thread{'s' * (result.compute.threads > 1)}"
    fine = (
        f"* a short run on this machine with llama.cpp, {threads}; "
        f"bits per byte on {result.eval_name} ({result.after.evaluation.n_bytes:,} bytes, lower is better)"
    )
    for line in (fine, *losses(result), *_parity(result)):
        console.print(Text(one_line(line)), soft_wrap=soft)
    languages = ", ".join(f"{cost.language} {cost.ratio:.2f}" for cost in result.languages)
    console.print(Text(f"tokens per character, after / before: {languages}"), soft_wrap=soft)
    costly = [cost.language for cost in result.languages if cost.ratio > WARNING_RATIO]
    if costly:
        advice = "if you need them, rank the tokens by text of yours: --vocab-corpus FILE"
        text = f"warning: above {WARNING_RATIO} in {', '.join(costly)}; {advice}"
        console.print(Text(text, style="yellow"), soft_wrap=soft)
    console.print()
    _print_replies(result, None if soft else console.width)
    for line in next_commands(result):
        click.echo(line)


def _parity(result: BuildResult) -> list[str]:
    report = result.after.parity
    if report is None:
        return ["parity gate: skipped (--no-check)"]
    word = "passed in part, the model did not fit in memory" if report.partial else "passed"
    return [f"parity gate: {word}", *(f"- {check.name}: {check.detail}" for check in report.checks)]


def _print_replies(result: BuildResult, width: int | None) -> None:
    """The prompt and what each model answers, wrapped at `width` columns where there is a terminal."""
    click.echo(f"prompt: {one_line(result.prompt)}")
    for name, side in (("before", result.before), ("after", result.after)):
        if side is not None and side.measured.reply is not None:
            reply = side.measured.reply
            short = reply if len(reply) <= _REPLY_WIDTH else reply[:_REPLY_WIDTH] + " ..."
            lines = [one_line(line) for line in short.splitlines() if line.strip()] or ["(no text)"]
            if width is not None:
                lines = [part for line in lines for part in wrap(line, max(20, width - 4))]
            click.echo("\n    ".join((f"{name}:", *lines)))
    click.echo()


def next_commands(result: BuildResult) -> list[str]:
    """What to run next, ready to paste."""
    here = Path.cwd()
    path = result.out.relative_to(here) if result.out.is_relative_to(here) else result.out
    out = shlex.quote(str(path))
    file = shlex.quote(str(path / "gguf" / result.files[0]))
    chat = "-cnv" if has_chat_template(result.after.side.checkpoint) else "-no-cnv -p 'Once upon a time'"
    return [
        f"wrote {result.out}",
        "next:",
        f"  compact-edge verify {out}",
        f"  compact-edge eval {file} --text YOUR_TEXT",
        f"  llama-cli -m {file} {chat}",
    ]
