"""Output for the user: results on stdout; progress, notes and errors on stderr.

On a terminal, work shows a bar with its rate and the time left. Elsewhere (a file, a pipe, CI) it writes a plain line
at the start, about every ten seconds, and at the end, so that a log stays readable.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

import click

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from compact.base.progress import Task

_SECONDS_BETWEEN_LINES = 10.0
# For shorter work, a rate is not meaningful.
_SECONDS_FOR_A_RATE = 0.05
# In columns: the terminal width for a long bar, the space for the numbers, and the padded width of a name.
_WIDE, _NUMBERS_WIDTH, _NAME_WIDTH = 100, 40, 34


def one_line(text: str) -> str:
    """Return `text` on one line with control characters escaped.

    Messages may contain file names and texts from a checkpoint. Raw escape sequences in them could rewrite the screen.
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in " ".join(text.splitlines())
    )


def print_error(message: str, hint: str | None = None) -> None:
    """Write `error: MESSAGE` and, if given, `hint: HINT` to stderr."""
    for label, text in (("error", message), ("hint", hint)):
        if text:
            _write_line(sys.stderr, f"{label}: {one_line(text)}")


def print_json(result: object) -> None:
    """Write `result` to stdout as JSON. It is pure ASCII, so that every terminal and pipe encoding accepts it."""
    import json

    click.echo(json.dumps(result, indent=2, allow_nan=False))


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format `rows` as columns under `header`, two spaces apart. The width of the last column is not limited."""
    cells = [[one_line(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells)
    return "\n".join(lines)


def format_duration(seconds: float) -> str:
    """Format a duration for people: 8.2s, 4m05s, 2h03m."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"


def format_count(value: float) -> str:
    """Format a number with separated thousands. Small rates keep three digits."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def is_interactive(stream: TextIO) -> bool:
    """Return whether `stream` is a terminal that can show a bar."""
    try:
        terminal = stream.isatty()
    except ValueError:
        return False
    # Some CI services provide a terminal, but store every redraw of a bar as a line.
    return terminal and os.environ.get("CI", "").lower() in ("", "0", "false") and os.environ.get("TERM") != "dumb"


class Console:
    """Shows the progress of long work. Implements `compact.base.progress.Progress`."""

    def __init__(
        self,
        stream: TextIO | None = None,
        interactive: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Report to `stream` (stderr if None). If `interactive` is None, detect it from the stream."""
        self._stream = sys.stderr if stream is None else stream
        self._interactive = is_interactive(self._stream) if interactive is None else interactive
        self._clock = clock
        self._live: RichProgress | None = None

    @contextmanager
    def task(self, description: str, total: int | None, unit: str) -> Iterator[Task]:
        """Open a task of `total` units (None if unknown) and report it until the block ends."""
        description = one_line(description)
        if self._interactive:
            with self._bar(description, total, unit) as bar:
                yield bar
            return
        plain = _PlainTask(self._write, self._clock, description, total, unit)
        try:
            yield plain
        except BaseException:
            plain.stop()
            raise
        plain.finish()

    def note(self, text: str) -> None:
        """Write one line, above any bars."""
        if self._live is not None:
            self._live.console.print(one_line(text), markup=False, highlight=False, soft_wrap=True)
        else:
            self._write(one_line(text))

    def _write(self, line: str) -> None:
        _write_line(self._stream, line)

    @contextmanager
    def _bar(self, description: str, total: int | None, unit: str) -> Iterator[Task]:
        """Add a bar. All running tasks share one display, because a terminal can have only one."""
        if self._live is not None:
            with _bar_of(self._live, description, total, unit) as bar:
                yield bar
            return
        with _new_display(self._stream) as display:
            self._live = display
            try:
                with _bar_of(display, description, total, unit) as bar:
                    yield bar
            finally:
                self._live = None


class _PlainTask:
    """A task that reports with plain lines."""

    def __init__(
        self, write: Callable[[str], None], clock: Callable[[], float], description: str, total: int | None, unit: str
    ) -> None:
        self._write = write
        self._clock = clock
        self._description = description
        self._total = total
        self._unit = unit
        self._done = 0
        self._start = self._last_line = clock()
        self._write(f"{description}: " + (f"{format_count(total)} {unit}" if total is not None else "started"))

    def advance(self, amount: int = 1) -> None:
        """Add `amount` finished units. Write a line if the last one is at least ten seconds old."""
        self._done += amount
        now = self._clock()
        if now - self._last_line < _SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        rate = self._done / (now - self._start)
        parts = [self._progress(), f"{format_count(rate)} {self._unit}/s"]
        if self._total is not None and rate > 0:
            parts.append(f"{format_duration(max(0.0, (self._total - self._done) / rate))} left")
        self._write(f"{self._description}: {', '.join(parts)}")

    def finish(self) -> None:
        """Write the last line of finished work."""
        seconds = self._clock() - self._start
        line = f"{self._description}: {format_count(self._done)} {self._unit} in {format_duration(seconds)}"
        if seconds > _SECONDS_FOR_A_RATE and self._done:
            line += f" ({format_count(self._done / seconds)} {self._unit}/s)"
        self._write(line)

    def stop(self) -> None:
        """Write the last line of work that did not finish."""
        self._write(f"{self._description}: stopped at {self._progress()}")

    def _progress(self) -> str:
        if not self._total:
            return f"{format_count(self._done)} {self._unit}"
        percent = 100 * self._done // self._total
        return f"{percent}% of {format_count(self._total)} {self._unit}"


class _BarTask:
    """A task that reports with a bar."""

    def __init__(self, display: RichProgress, task: TaskID) -> None:
        self._display = display
        self._task = task

    def advance(self, amount: int = 1) -> None:
        """Add `amount` finished units."""
        self._display.advance(self._task, amount)


@contextmanager
def _bar_of(display: RichProgress, description: str, total: int | None, unit: str) -> Iterator[Task]:
    identifier = display.add_task(description, total=total, unit=unit)
    try:
        yield _BarTask(display, identifier)
    finally:
        # A bar without a total would keep pulsing after its end.
        if total is None:
            done = display.tasks[display.task_ids.index(identifier)].completed
            display.update(identifier, total=done)
        display.stop_task(identifier)


def _new_display(stream: TextIO) -> RichProgress:
    """Create the display of bars. Import rich here, because only long work on a terminal needs it."""
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress
    from rich.progress import Task as RichTask
    from rich.table import Column
    from rich.text import Text

    console = RichConsole(file=stream, highlight=False)
    # One line per task: a description that does not fit is cut, never wrapped.
    bar = 8 if console.width < _WIDE else 30
    room = max(12, console.width - bar - _NUMBERS_WIDTH)

    class Description(TextColumn):
        """The task's name, cut in the middle, because file names differ at both ends."""

        def render(self, task: RichTask) -> Text:
            return Text(cut_middle(task.description, room).ljust(min(room, _NAME_WIDTH)), no_wrap=True)

    class Rate(ProgressColumn):
        """Finished units, and units per second."""

        def render(self, task: RichTask) -> Text:
            speed = task.finished_speed or task.speed
            return Text(format_amount(task.completed, task.total, task.fields["unit"], speed), no_wrap=True)

    return RichProgress(
        Description("", table_column=Column(no_wrap=True)),
        BarColumn(bar_width=bar),
        Rate(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(elapsed_when_finished=True, table_column=Column(no_wrap=True)),
        console=console,
    )


def cut_middle(text: str, width: int) -> str:
    """Return `text` with at most `width` characters. In a longer text, three dots replace the middle."""
    if len(text) <= width:
        return text
    tail = (width - 3) // 2
    return f"{text[: width - 3 - tail]}...{text[len(text) - tail :]}"


def format_amount(done: float, total: float | None, unit: str, speed: float | None) -> str:
    """Format finished and total units, and units per second: 12.3/76.4 MB  36.5 MB/s."""
    if unit == "bytes":
        largest = done if total is None else total
        scale, name = (1e9, "GB") if largest >= 1e9 else (1e6, "MB") if largest >= 1e6 else (1e3, "kB")
        amount = f"{done / scale:.1f}" + ("" if total is None else f"/{total / scale:.1f}")
        return f"{amount} {name}" + (f"  {speed / 1e6:.1f} MB/s" if speed else "")
    amount = format_count(done) + ("" if total is None else f"/{format_count(total)}")
    return f"{amount} {unit}" + (f"  {format_count(speed)}/s" if speed else "")


def _write_line(stream: TextIO, line: str) -> None:
    """Write one line. Escape characters that the stream's encoding lacks, so that writing an error never fails."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()
