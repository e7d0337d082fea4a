"""The commands that the documents show, and what is known of each without running it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from compact_edge.cli.main import COMMANDS, PROGRAM, Session, cli

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = tuple(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
)
# Programs of others, whose options are theirs.
NOT_OURS = frozenset({"make", "pipx", "sudo", "hf", "adb", "ollama", "llama-cli", "cd", "pytest", ".ci/run", "gh"})
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """One command of a document: its words, and the text that they come from."""

    document: str
    text: str
    words: tuple[str, ...]

    @property
    def arguments(self) -> tuple[str, ...] | None:
        """What follows `compact-edge`, also where torchrun starts it; None for another program."""
        if self.words[0] == PROGRAM:
            return self.words[1:]
        if self.words[0] == "torchrun" and "compact_edge" in self.words:
            return self.words[self.words.index("compact_edge") + 1 :]
        return None

    @property
    def script(self) -> Path | None:
        """The script of this repository that it runs, or None."""
        if self.words[0] != "python" or len(self.words) < 2:
            return None
        if self.words[1] == "-m" and self.words[2].startswith("benchmarks."):
            return ROOT / f"{self.words[2].replace('.', '/')}.py"
        return None if self.words[1].startswith("-") else ROOT / self.words[1]


def blocks(document: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return [match[2] for match in _FENCE.finditer(text) if match[1] == language]


def commands(document: str) -> Iterator[Command]:
    """Every command of a document's console blocks, in order."""
    for block in blocks(document, "console"):
        for line in block.replace("\\\n", " ").splitlines():
            words: list[str] = []
            for word in [*shlex.split(line, comments=True), "&&"]:
                if word != "&&":
                    words.append(word)
                elif words:
                    yield Command(document, " ".join(words), tuple(words))
                    words = []


def prose_code(document: str) -> list[str]:
    """What stands in backticks outside of fenced blocks, each on one line."""
    text = _FENCE.sub("", (ROOT / document).read_text(encoding="utf-8"))
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]


def resolve(arguments: Sequence[str]) -> tuple[click.Context, click.Command, list[str]]:
    """The command that the arguments name, below groups too, and what is left of them."""
    context = click.Context(cli, info_name=PROGRAM, obj=Session())
    command: click.Command = cli
    rest = list(arguments)
    while isinstance(command, click.Group):
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None, f"no command {name!r}"
        command = found
        context = click.Context(command, info_name=name, parent=context)
    return context, command, rest


def parse(arguments: Sequence[str]) -> None:
    """Have click read the arguments as it would; raises its UsageError. Nothing is run."""
    context, command, rest = resolve(arguments)
    try:
        command.make_context(context.info_name, rest, parent=context.parent)
    except click.exceptions.Exit as error:
        assert error.exit_code == 0


def every_option() -> set[str]:
    """The options of all commands."""
    found = {"--version"}
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        below = command.commands.values() if isinstance(command, click.Group) else ()
        for each in (command, *below):
            found.update(option for parameter in each.params for option in parameter.opts)
    return found


def script_options(folder: Path) -> set[str]:
    """The options that the scripts of a folder and of those below it know."""
    return {
        option
        for path in folder.rglob("*.py")
        for option in re.findall(r'"(--[a-z][a-z-]*)"', path.read_text(encoding="utf-8"))
    }
