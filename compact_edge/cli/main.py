"""The command line: the table of commands, and the entry point.

The module of a command is imported only when the command runs. `--help` of the group imports none. `--help` of a
command imports only its module, which imports nothing heavy at the top. A command returns None or raises. Only `run`
converts exceptions to messages and exit codes.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from io import TextIOWrapper
from types import FrameType
from typing import NoReturn

import click

from compact_edge.terminal.console import print_error
from compact_edge.version import __version__

try:
    from compact.base.distributed import launched
    from compact_edge.cli.failure import EXIT_BROKEN_PIPE, Failure, Terminated, describe
except ImportError:
    # `compact` is a common name. If another distribution's package shadows ours, not even `doctor` can start.
    print_error(
        "the import name 'compact' belongs to another package in this environment",
        "install compact-edge in a separate environment (pipx install compact-edge)",
    )
    raise SystemExit(69) from None

PROGRAM = "compact-edge"
# The exception that the last signal raised. C code that calls Python can replace it by another error (torch's loading
# raises ValueError), but the message and the exit code must be those of the signal.
_signal_error: BaseException | None = None
# A shell sets this variable to request completions. The name follows click's convention.
_COMPLETE_VARIABLE = "_COMPACT_EDGE_COMPLETE"


@dataclass(frozen=True)
class Entry:
    """One command.

    Attributes:
        module: module of the command.
        function: name of the command in the module.
        short_help: line in the help of the group.
        parallel: whether it can run in several processes under `torchrun`.
    """

    module: str
    function: str
    short_help: str
    parallel: bool = False


COMMANDS: dict[str, Entry] = {
    "build": Entry("compact_edge.cli.commands.build", "build", "Prune, export, check and compare, in one command."),
    "release": Entry("compact_edge.cli.commands.release", "release", "Build many models, ratios and targets."),
    "gather": Entry("compact_edge.cli.commands.gather", "gather", "Join separately built cells into a release."),
    "prune": Entry(
        "compact_edge.cli.commands.prune", "prune", "Prune a model to a Hugging Face checkpoint.", parallel=True
    ),
    "export": Entry("compact_edge.cli.commands.export", "export", "Export a checkpoint to GGUF or ONNX."),
    "eval": Entry(
        "compact_edge.cli.commands.eval", "evaluate", "Measure bits per byte on a text, or accuracy on tasks."
    ),
    "curve": Entry("compact_edge.cli.commands.curve", "curve", "Show the best file of each size, and its loss."),
    "bench": Entry("compact_edge.cli.commands.bench", "bench", "Measure an artifact against its baseline on a device."),
    "report": Entry("compact_edge.cli.commands.report", "report", "Show one benchmark run, or compare several."),
    "engine": Entry("compact_edge.cli.commands.engine", "engine", "Build llama.cpp's server for a device."),
    "inspect": Entry(
        "compact_edge.cli.commands.inspect", "inspect", "Show parameters by part: vocabulary, attention, FFN, norms."
    ),
    "targets": Entry("compact_edge.cli.commands.targets", "targets", "List the device profiles, or show one."),
    "devices": Entry(
        "compact_edge.cli.commands.devices", "devices", "List devices to measure on, and test those you name."
    ),
    "verify": Entry("compact_edge.cli.commands.verify", "verify", "Check the hashes of a published directory."),
    "doctor": Entry("compact_edge.cli.commands.doctor", "doctor", "Check what this machine has and what is missing."),
}


@dataclass
class Session:
    """State of one run of the command line."""

    debug: bool = False
    arguments: tuple[str, ...] = ()


def _set_debug(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    session = context.find_object(Session)
    if value and session is not None:
        session.debug = True


def _debug_option() -> click.Option:
    # Eager, so that it also applies to errors in later options.
    return click.Option(
        ["--debug"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_set_debug,
        help="Show the traceback of an error (also: COMPACT_EDGE_DEBUG=1).",
    )


class LazyGroup(click.Group):
    """A group that imports a command only when it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table, which follows a user's workflow."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of `cmd_name` and return its command."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        if launched() > 1 and not entry.parallel:
            able = ", ".join(name for name, each in COMMANDS.items() if each.parallel)
            raise click.UsageError(
                f"{cmd_name} runs in one process, but torchrun started {launched()}; several can share only: {able}",
                ctx,
            )
        command = getattr(import_module(entry.module), entry.function)
        if not isinstance(command, click.Command):
            raise TypeError(f"{entry.module}.{entry.function} is not a click command")
        # Users add --debug at the end of the failed command line, so every command accepts it too.
        commands = [command, *(command.commands.values() if isinstance(command, click.Group) else ())]
        for each in commands:
            if not any("--debug" in parameter.opts for parameter in each.params):
                each.params.append(_debug_option())
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command named by the first word, or suggest similar names."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            from difflib import get_close_matches

            error = click.UsageError(f"no such command {name!r}", ctx)
            # click's error for unknown options has the same attribute, so `describe` can handle both.
            error.possibilities = get_close_matches(name, COMMANDS, n=2)  # type: ignore[attr-defined]
            raise error
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table, without importing their modules."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.short_help) for name, entry in COMMANDS.items()])


cli = LazyGroup(
    name=PROGRAM,
    help="Prune a language model to fit a phone or a laptop, and check what it costs.",
    epilog="Start with: compact-edge doctor, then compact-edge build MODEL --target gguf.",
    params=[_debug_option()],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
cli = click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")(cli)


def run(arguments: Sequence[str]) -> int:
    """Run the command line with `arguments`. Print an error, if any, to stderr, and return the exit code."""
    debug = os.environ.get("COMPACT_EDGE_DEBUG", "") not in ("", "0")
    session = Session(debug, tuple(arguments))
    try:
        if _COMPLETE_VARIABLE in os.environ:
            from click.shell_completion import shell_complete

            return shell_complete(cli, {}, PROGRAM, _COMPLETE_VARIABLE, os.environ[_COMPLETE_VARIABLE])
        # Do not use `cli.main`. When the output is closed, it ends the process with another exit code.
        with cli.make_context(PROGRAM, list(arguments), obj=session) as context:
            cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help(), err=True)
        return error.exit_code
    except SystemExit:
        raise
    except BrokenPipeError:
        return _output_closed()
    except BaseException as error:
        return _report(error, describe(_signal_error or error), session.debug)
    return 0


def main() -> None:
    """Entry point of the `compact-edge` program."""
    _end_cleanly_on_signals()
    # A model's reply may contain characters that the terminal cannot show. That must not fail a finished build.
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    code = run(sys.argv[1:])
    if code and launched() > 1:
        # A torch thread that waits for another process would keep this process, and so the failed job, alive.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _report(error: BaseException, failure: Failure, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    if failure.message is not None:
        print_error(failure.message, failure.hint)
    return failure.exit_code


def _output_closed() -> int:
    # The interpreter flushes stdout again at exit, which would fail. Redirect stdout to the null device.
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        sys.stdout = None
    return EXIT_BROKEN_PIPE


def _end_cleanly_on_signals() -> None:
    """Let signals raise exceptions, so that temporary directories are removed before the process ends."""
    if threading.current_thread() is not threading.main_thread():
        return
    # If the parent process ignores SIGINT, keep that handler.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _raise_interrupted)
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # Keep ignoring a signal that the parent ignores (nohup).
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _raise_terminated)


def _raise_terminated(number: int, _frame: FrameType | None) -> None:
    # timeout(1) signals the process and then its group, so the signal arrives twice. The second must not interrupt
    # the cleanup after the first.
    signal.signal(number, signal.SIG_IGN)
    _raise(Terminated(number, signal.Signals(number).name))


def _raise_interrupted(_number: int, _frame: FrameType | None) -> None:
    # Unlike SIGTERM, SIGINT stays enabled: a second Ctrl-C ends a cleanup that takes too long.
    _raise(KeyboardInterrupt())


def _raise(error: BaseException) -> NoReturn:
    global _signal_error
    _signal_error = error
    raise error
