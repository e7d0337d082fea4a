"""Progress on a terminal and in a log, and the small formatters."""

from __future__ import annotations

import io
import json
import re

import pytest

from compact.base.progress import Progress
from compact_edge.terminal.console import (
    Console,
    cut_middle,
    format_amount,
    format_count,
    format_duration,
    format_table,
    is_interactive,
    one_line,
    print_error,
    print_json,
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_a_first_line_some_between_and_a_last() -> None:
    clock, stream = Clock(), io.StringIO()
    console: Progress = Console(stream, interactive=False, clock=clock)
    with console.task("calibrating", 1000, "tokens") as task:
        for _ in range(100):
            clock.now += 0.25
            task.advance(10)
    assert stream.getvalue().splitlines() == [
        "calibrating: 1,000 tokens",
        "calibrating: 40% of 1,000 tokens, 40 tokens/s, 15.0s left",
        "calibrating: 80% of 1,000 tokens, 40 tokens/s, 5.0s left",
        "calibrating: 1,000 tokens in 25.0s (40 tokens/s)",
    ]


def test_a_log_of_unknown_length() -> None:
    clock, stream = Clock(), io.StringIO()
    with Console(stream, interactive=False, clock=clock).task("hashing", None, "files") as task:
        clock.now += 20
        task.advance(7)
    assert stream.getvalue().splitlines() == [
        "hashing: started",
        "hashing: 7 files, 0.35 files/s",
        "hashing: 7 files in 20.0s (0.35 files/s)",
    ]


def test_an_empty_task_divides_by_nothing() -> None:
    clock, stream = Clock(), io.StringIO()
    console = Console(stream, interactive=False, clock=clock)
    with console.task("copying", 0, "tensors") as task:
        clock.now += 11
        task.advance(0)
    assert stream.getvalue().splitlines()[-1] == "copying: 0 tensors in 11.0s"


def test_a_failed_task_says_where_it_stopped_and_raises() -> None:
    stream = io.StringIO()
    with (
        pytest.raises(KeyError),
        Console(stream, interactive=False, clock=Clock()).task("exporting", 4, "tensors") as task,
    ):
        task.advance(3)
        raise KeyError("x")
    assert stream.getvalue().splitlines()[-1] == "exporting: stopped at 75% of 4 tensors"


def test_bars_on_a_terminal_nest_and_let_notes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    console = Console(stream, interactive=True)
    with console.task("outer [bold]", 2, "steps") as outer:
        with console.task("inner", None, "tokens") as inner:
            inner.advance(1500)
            console.note("a note [not markup] \x1b[2J")
        outer.advance(2)
    text = stream.getvalue()
    assert "outer [bold]" in text
    assert "2/2 steps" in text
    assert "1,500 tokens" in text
    assert r"a note [not markup] \x1b[2J" in text
    # The display is closed, so a second one can be opened and a note goes out as it is.
    with console.task("again", 1, "steps") as task:
        task.advance()
    console.note("plain")
    assert stream.getvalue().endswith("plain\n")


def test_a_bar_survives_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    console = Console(Terminal(), interactive=True)
    with pytest.raises(KeyError), console.task("one", 5, "steps"):
        raise KeyError("x")
    with console.task("two", 5, "steps") as task:
        task.advance(5)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, True), ({"CI": "true"}, False), ({"CI": "false"}, True), ({"TERM": "dumb"}, False)],
)
def test_a_bar_only_where_it_can_be_drawn(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: bool
) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_interactive(Terminal()) is expected
    assert not is_interactive(io.StringIO())
    closed = io.StringIO()
    closed.close()
    assert not is_interactive(closed)


def test_errors_and_results_go_to_their_streams(capsys: pytest.CaptureFixture[str]) -> None:
    print_error("bad file", "get another")
    print_error("no hint")
    print_json({"name": "caf\u00e9 \udcff", "size": 3})
    out, err = capsys.readouterr()
    assert err == "error: bad file\nhint: get another\nerror: no hint\n"
    assert out.isascii()
    assert json.loads(out) == {"name": "caf\u00e9 \udcff", "size": 3}


def test_json_refuses_what_is_no_json() -> None:
    with pytest.raises(ValueError, match="JSON"):
        print_json({"x": float("nan")})


def test_a_stream_with_a_small_encoding_still_takes_the_line() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", errors="strict")
    Console(stream, interactive=False).note("na\u00efve \U0001f600")
    assert raw.getvalue() == b"na\\xefve \\U0001f600\n"


def test_one_line() -> None:
    assert one_line("a\nb\tc\x00\x7f") == r"a b\tc\x00\x7f"
    assert one_line("\udcff\u2028x") == r"\udcff x"
    assert one_line("Gr\u00fc\u00dfe \u4e16") == "Gr\u00fc\u00dfe \u4e16"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0s"), (8.24, "8.2s"), (59.99, "60.0s"), (245, "4m05s"), (3599.7, "1h00m"), (7380, "2h03m")],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (3.14159, "3.14"), (99, "99"), (1234.6, "1,235")])
def test_counts(value: float, text: str) -> None:
    assert format_count(value) == text


def test_tables_line_up() -> None:
    assert format_table(("A", "BB"), [("long", "x"), ("s", "y\nz")]) == "A     BB\nlong  x\ns     y z"


def test_amounts_are_short() -> None:
    assert format_amount(2560, 4096, "tokens", 702.6) == "2,560/4,096 tokens  703/s"
    assert format_amount(3, None, "files", None) == "3 files"
    assert format_amount(12_300_000, 76_400_000, "bytes", 36_500_000.0) == "12.3/76.4 MB  36.5 MB/s"
    assert format_amount(0, 0, "bytes", None) == "0.0/0.0 kB"
    assert format_amount(5_000_000_000, None, "bytes", None) == "5.0 GB"


@pytest.mark.parametrize("columns", ["80", "120"])
def test_a_bar_takes_one_line(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", columns)
    stream = Terminal()
    name = "writing Some-Model-135M-Instruct-compact-108M-Q8_0.gguf"
    with Console(stream, interactive=True).task(name, 76_400_000, "bytes") as task:
        task.advance(76_400_000)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    frames = [line.strip() for line in re.split(r"[\r\n]+", plain) if line.strip()]
    assert all(line.startswith("writing") for line in frames)  # a wrapped bar would begin with its rest
    assert all(len(line) <= int(columns) for line in frames)
    assert "Q8_0.gguf" in frames[-1]
    assert "76.4/76.4 MB" in frames[-1]


def test_a_long_name_loses_its_middle() -> None:
    assert cut_middle("short", 10) == "short"
    assert cut_middle("writing model-Q8_0.gguf", 16) == "writing...0.gguf"
    assert len(cut_middle("x" * 99, 17)) == 17
