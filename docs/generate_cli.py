"""Writes docs/cli.md, the reference of the command line, from click's own commands.

    python docs/generate_cli.py [--check]

`--check` ends with exit code 1 if the page is stale. Options appear under the headings of `--help`.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from compact_edge.cli.main import COMMANDS, PROGRAM, cli  # noqa: E402

PAGE = Path(__file__).with_name("cli.md")
HEAD = f"""\
# Commands

`python docs/generate_cli.py` writes this page from the program itself. `{PROGRAM} COMMAND --help` prints the same
text.

Results go to stdout and everything else to stderr. Every command also accepts `--help` and `--debug` (shows the
traceback of an error). The tables omit both.

| exit code | meaning |
|---|---|
| 0 | done |
| 2 | usage |
| 3 | a gate, a budget or a part of the work failed |
| 65 | bad or damaged data |
| 69 | a tool or device is missing |
| 74 | I/O |
| 130, 143 | interrupted |
| 1 | a bug in compact-edge |
"""
# The name of the help option depends on the context in which a command's help was first requested.
_EVERYWHERE = ("--debug", "-h, --help", "--help")


class _Recorder(click.HelpFormatter):
    """Records the option rows of a command's help instead of formatting them."""

    def __init__(self) -> None:
        super().__init__(width=10_000)
        self.sections: dict[str, list[tuple[str, str]]] = {}
        self._title = ""

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Remember the heading."""
        self._title = name
        yield

    def write_dl(self, rows: Sequence[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        """Record the rows under the heading."""
        del col_max, col_spacing
        self.sections[self._title] = [row for row in rows if row[0] not in _EVERYWHERE]


def page() -> str:
    """The whole page."""
    parts = [HEAD, _overview()]
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        parts += _command(f"{PROGRAM} {name}", command)
    return "\n".join(parts)


def _overview() -> str:
    rows = [(f"[`{name}`](#{PROGRAM}-{name})", entry.short_help) for name, entry in COMMANDS.items()]
    return "| command | what it does |\n|---|---|\n" + "\n".join(f"| {name} | {text} |" for name, text in rows) + "\n"


def _command(path: str, command: click.Command, level: int = 2) -> list[str]:
    """A command and, if it is a group, its subcommands."""
    context = click.Context(command, info_name=path, parent=click.Context(cli, **cli.context_settings))
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    parts = [f"{'#' * level} {path}\n", f"```text\n{usage}\n```\n", _text(command) + "\n"]
    recorder = _Recorder()
    command.format_options(context, recorder)
    if isinstance(command, click.Group):
        recorder.sections.pop("Commands", None)
    for title, rows in recorder.sections.items():
        if rows:
            parts.append(f"| {title} | |\n|---|---|")
            parts += [f"| {_code(option)} | {_cell(text)} |" for option, text in rows]
            parts.append("")
    if isinstance(command, click.Group):
        for name, below in sorted(command.commands.items()):
            parts += _command(f"{path} {name}", below, level + 1)
    return parts


def _text(command: click.Command) -> str:
    """The description of a command. Click's mark for a paragraph that it must not wrap is left out."""
    return _plain(inspect.cleandoc(command.help or "").replace("\b\n", ""))


def _code(option: str) -> str:
    return "`" + option.replace("|", "\\|") + "`"


def _cell(text: str) -> str:
    return _plain(" ".join(text.split())).replace("|", "\\|")


def _plain(text: str) -> str:
    """Escape Markdown and HTML marks; text in backticks stays code."""
    pieces = text.split("`")
    for number in range(0, len(pieces), 2):
        for mark in ("*", "_", "<", "["):
            pieces[number] = pieces[number].replace(mark, "\\" + mark)
    return "`".join(pieces)


def main() -> None:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare the page with the commands")
    text = page()
    if not parser.parse_args().check:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        sys.exit(f"error: {PAGE.name} is stale\nhint: python docs/generate_cli.py")


if __name__ == "__main__":
    main()
