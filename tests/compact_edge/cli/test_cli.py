"""The loop around the commands: exit codes, error lines, suggestions, signals, and a start that loads nothing heavy."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from compact.base import errors
from compact_edge import __version__
from compact_edge.cli import main as cli
from compact_edge.cli.failure import Terminated, describe
from compact_edge.packages import PACKAGES

ROOT = Path(__file__).resolve().parents[3]
# As torch has it, which is not imported here.
TorchOutOfMemoryError = type("OutOfMemoryError", (RuntimeError,), {"__module__": "torch"})
Install = Callable[[Callable[[], None]], None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Give the table one more command, `probe`, that runs a function of the test's."""

    def put(body: Callable[[], None]) -> None:
        @click.command()
        @click.option("--size", type=int, help="A number.")
        def probe(size: int | None) -> None:
            del size
            body()

        module = types.ModuleType("compact_edge_probe")
        module.probe = probe  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "compact_edge_probe", module)
        monkeypatch.setitem(cli.COMMANDS, "probe", cli.Entry("compact_edge_probe", "probe", "A probe."))
        monkeypatch.delenv("COMPACT_EDGE_DEBUG", raising=False)

    return put


def raising(error: BaseException) -> Callable[[], None]:
    def body() -> None:
        raise error

    return body


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("error", "code", "message", "hint"),
    [
        (errors.UsageError("no target named 'x'", "name one"), 2, "no target named 'x'", "name one"),
        (errors.OutputExistsError("out is there", "use --force"), 2, "out is there", "use --force"),
        (errors.GateError("parity failed"), 3, "parity failed", None),
        (errors.DamagedFileError("a.safetensors: truncated", "get it again"), 65, "truncated", "get it again"),
        (errors.EngineCrashedError("llama.cpp ended", "try again"), 69, "llama.cpp ended", "try again"),
        (errors.DiskFullError("needs 3 GB", "free some"), 74, "needs 3 GB", "free some"),
        (OSError(errno.ENOSPC, "No space left on device", "out/x"), 74, "out/x: no space left on device", "free some"),
        (OSError(errno.EACCES, "Permission denied", "out"), 74, "out: permission denied", "another place"),
        (FileNotFoundError("model.safetensors is gone"), 74, "model.safetensors is gone", "check the path"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 69, "package torch is not", "[prune]"),
        (ModuleNotFoundError("no", name="llama_cpp.lib"), 69, "package llama-cpp-python is not", "[prune]"),
        (ModuleNotFoundError("No module named 'compact.x'", name="compact.x"), 1, "internal error", "--debug"),
        (MemoryError(), 69, "not enough memory", "smaller model"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9"), 69, "not enough memory", "s"),
        (TorchOutOfMemoryError("CUDA out of memory. Tried to allocate 6.00 GiB."), 69, "not enough memory", "cpu"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), 69, "not enough memory", "--batch-size"),
        (RuntimeError("CUDA error: out of memory\nmore lines"), 69, "not enough memory", "--batch-size"),
        (KeyboardInterrupt(), 130, "interrupted", None),
        (Terminated(15, "SIGTERM"), 143, "stopped by SIGTERM", None),
        (ZeroDivisionError("division by zero"), 1, "internal error: ZeroDivisionError: division", "--debug"),
        (EOFError("marshal data too short"), 1, "internal error: EOFError: marshal data", "--debug"),
        (OSError("not a folder with a tokenizer"), 1, "internal error: OSError", "--debug"),
        (click.BadParameter("'x' is not a number."), 2, "'x' is not a number", "see compact-edge probe --help"),
        (click.FileError("a.txt", "gone"), 74, "a.txt", None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_each_error_has_its_exit_code_and_lines(
    install: Install,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    message: str,
    hint: str | None,
) -> None:
    install(raising(error))
    assert cli.run(["probe"]) == code
    out, err = capsys.readouterr()
    lines = err.strip().splitlines()
    assert out == ""
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    if hint is None:
        assert len(lines) == 1
    else:
        assert len(lines) == 2
        assert lines[1].startswith("hint: ")
        assert hint in lines[1]


def test_success_is_zero_and_ctx_exit_is_kept(install: Install) -> None:
    install(lambda: None)
    assert cli.run(["probe"]) == 0
    install(lambda: click.get_current_context().exit(3))
    assert cli.run(["probe"]) == 3


def test_a_message_cannot_write_to_the_terminal(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install(raising(errors.DataError("evil\x1b[2J\nname\u202e", "line\rtwo")))
    cli.run(["probe"])
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert "\u202e" not in err
    assert err.splitlines() == [r"error: evil\x1b[2J name\u202e", "hint: line two"]


@pytest.mark.parametrize("arguments", [["--debug", "probe"], ["probe", "--debug"]])
def test_debug_shows_the_traceback(install: Install, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    install(raising(ZeroDivisionError("by nothing")))
    assert cli.run(["probe"]) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert cli.run(arguments) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "error: internal error: ZeroDivisionError: by nothing" in err


@pytest.mark.parametrize(("value", "shown"), [("1", True), ("0", False), ("", False)])
def test_debug_by_the_environment(
    install: Install,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    value: str,
    shown: bool,
) -> None:
    install(raising(ZeroDivisionError()))
    monkeypatch.setenv("COMPACT_EDGE_DEBUG", value)
    cli.run(["probe"])
    assert ("Traceback" in capsys.readouterr().err) is shown


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["biuld"], "no such command 'biuld'", "did you mean build?"),
        (["zzzz"], "no such command 'zzzz'", "see compact-edge --help"),
        (["probe", "--szie", "3"], "no such option '--szie'", "did you mean --size?"),
        (["--debgu"], "no such option '--debgu'", "did you mean --debug?"),
        (["probe", "--size", "many"], "'--size': 'many' is not a valid integer", "see compact-edge probe --help"),
        (["probe", "more"], "unexpected extra argument", "see compact-edge probe --help"),
    ],
)
def test_a_typing_error_is_usage_with_a_suggestion(
    install: Install, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str, hint: str
) -> None:
    install(lambda: None)
    assert cli.run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert f"hint: {hint}" in err


def test_no_command_shows_the_help_and_is_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Commands:" in err
    assert "error:" not in err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"compact-edge {__version__}\n"
    assert f'\nversion = "{__version__}"\n' in (ROOT / "pyproject.toml").read_text("utf-8")


def test_group_help_lists_every_command_and_imports_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    out = capsys.readouterr().out
    for name, entry in cli.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(entry.short_help)}", out, re.MULTILINE)


@pytest.mark.parametrize("words", [[], *([name] for name in cli.COMMANDS)], ids=lambda words: " ".join(words))
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    program = (
        "import sys; from compact_edge.cli.main import run\n"
        f"code = run({[*words, '--help']!r})\n"
        "heavy = {'torch', 'transformers', 'tokenizers', 'numpy', 'llama_cpp', 'gguf', 'rich', 'pyarrow', 'psutil'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)), code)"
    )
    result = python("-c", program)
    assert result.stdout.splitlines()[-1] == "HEAVY [] 0", result.stderr


def test_group_help_loads_no_command() -> None:
    program = (
        "import sys; from compact_edge.cli.main import run; run(['--help'])\n"
        "print('LOADED', [name for name in sys.modules if name.startswith('compact_edge.cli.commands')])"
    )
    assert python("-c", program).stdout.splitlines()[-1] == "LOADED []"


def test_a_closed_pipe_is_quiet() -> None:
    for command in (["targets", "--json"], ["--help"]):
        read, write = os.pipe()
        os.close(read)
        try:
            result = subprocess.run(
                [sys.executable, "-m", "compact_edge", *command],
                cwd=ROOT,
                stdout=write,
                stderr=subprocess.PIPE,
                text=True,
                timeout=60,
                check=False,
            )
        finally:
            os.close(write)
        assert result.stderr == ""
        assert result.returncode == 141


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to send")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_cleans_up_and_has_its_exit_code(tmp_path: Path, number: signal.Signals, code: int) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, time, types, click\n"
        "from pathlib import Path\n"
        "from compact_edge.cli import main as cli\n"
        "@click.command()\n"
        "def probe():\n"
        f"    work = Path({str(tmp_path / 'work')!r})\n"
        "    try:\n"
        "        work.mkdir(); time.sleep(30)\n"
        "    finally:\n"
        # A second signal must not break the cleaning up.
        "        time.sleep(0.3); work.rmdir()\n"
        "module = types.ModuleType('fake'); module.probe = probe; sys.modules['fake'] = module\n"
        "cli.COMMANDS['probe'] = cli.Entry('fake', 'probe', '')\n"
        "sys.argv = ['compact-edge', 'probe']\n"
        "cli.main()\n",
        "utf-8",
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, str(program)], env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not (tmp_path / "work").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(number)
    if number != signal.SIGINT:
        time.sleep(0.1)
        child.send_signal(number)
    _, err = child.communicate(timeout=30)
    assert child.returncode == code
    assert not (tmp_path / "work").exists()
    assert "Traceback" not in err
    assert "error: " in err


def test_a_shadowed_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "compact").mkdir()
    (tmp_path / "compact" / "__init__.py").write_text("", "utf-8")
    program = f"import sys; sys.path[:0] = [{str(tmp_path)!r}]; import compact_edge.cli.main"
    result = python("-c", program)
    assert result.returncode == 69
    assert "the import name 'compact' belongs to another package" in result.stderr
    assert "Traceback" not in result.stderr


def test_packages_repeat_pyproject() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lists = {"": project["dependencies"], **project["optional-dependencies"]}
    written = {
        (re.split(r"[><=]", line)[0], re.split(r"[><=,]+", line)[1], extra, *(re.findall(r"<(.*)", line) or [""]))
        for extra, lines in lists.items()
        if extra != "dev"
        for line in lines
    }
    assert written == {(p.distribution, p.minimum, p.extra, p.below) for p in PACKAGES}


def test_a_table_entry_that_is_no_command_is_a_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cli.COMMANDS, "bad", cli.Entry("compact_edge.cli.failure", "describe", ""))
    assert cli.run(["bad"]) == 1
    assert "internal error: TypeError" in capsys.readouterr().err
    assert describe(TypeError()).message == "internal error: TypeError"


def test_a_shell_can_complete_commands() -> None:
    result = python(
        "-m", "compact_edge", COMP_WORDS="compact-edge ta", COMP_CWORD="1", _COMPACT_EDGE_COMPLETE="bash_complete"
    )
    assert result.stdout == "plain,targets\n"
    assert result.returncode == 0
