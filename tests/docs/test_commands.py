"""No document names a command, option or script that is not there. What is here is run by test_commands_run.py."""

from __future__ import annotations

import click
import pytest

from compact_edge.cli.main import COMMANDS
from tests.docs.documents import (
    DOCUMENTS,
    NOT_OURS,
    ROOT,
    Command,
    commands,
    every_option,
    parse,
    prose_code,
    resolve,
    script_options,
)

# Options in prose that click adds itself.
_OF_CLICK = frozenset({"--help"})


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_is_one(document: str, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = []
    for command in commands(document):
        try:
            _check(command)
        except (click.UsageError, AssertionError) as error:
            wrong.append(f"{command.text}: {error}")
    assert not wrong, "\n".join(wrong)
    capsys.readouterr()  # a command such as `--quant list` prints as it is parsed


def _check(command: Command) -> None:
    if command.arguments is not None:
        parse(command.arguments)
    elif (script := command.script) is not None:
        assert script.is_file(), "no such script"
        # Scripts share their parsers.
        unknown = {word for word in command.words[2:] if word.startswith("--")} - script_options(script.parent)
        assert not unknown, f"no such option of the scripts: {unknown}"
    else:
        assert command.words[0] in NOT_OURS, "neither ours nor listed in NOT_OURS"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_and_option_in_prose_is_one(document: str) -> None:
    known = every_option() | script_options(ROOT / "benchmarks") | _OF_CLICK
    wrong = []
    for code in prose_code(document):
        words = code.split()
        if words[0] == "compact-edge" and len(words) > 1 and words[1] in COMMANDS:
            # As in `compact-edge build ... --json`: a name and some of its options.
            _, command, rest = resolve([word for word in words[1:] if word != "..."])
            own = {option for parameter in command.params for option in parameter.opts} | {"--help", "--debug"}
            wrong += [f"{code}: {word}" for word in rest if word.startswith("--") and word.split("=")[0] not in own]
        elif words[0] == "compact-edge" and len(words) > 1:
            if words[1] not in ("COMMAND", "...") and not words[1].startswith("-"):
                wrong.append(f"{code}: no such command")
        elif words[0].startswith("--") and words[0].split("=")[0] not in known:
            wrong.append(code)
    assert not wrong, "\n".join(wrong)


def test_what_is_wrong_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["build", "tiny", "--targte", "gguf"], ["build", "tiny"], ["bulid"], ["engine", "make"]):
        with pytest.raises(click.UsageError):
            parse(words)
    with pytest.raises(AssertionError):
        _check(Command("x.md", "frobnicate", ("frobnicate",)))
    with pytest.raises(AssertionError):
        _check(Command("x.md", "", ("python", "-m", "benchmarks.quality.ratios", "--modle", "tiny")))
    parse(["export", "pruned", "--quant", "list"])
    assert "Q4_K_M" in capsys.readouterr().out
