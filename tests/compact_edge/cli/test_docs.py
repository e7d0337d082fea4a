"""No command or option without words: help for each, and a place in the README."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import click
import pytest

from compact_edge.cli.main import COMMANDS, cli
from exporters.llamacpp.quant_types import QUANTS

ROOT = Path(__file__).resolve().parents[3]


def command_named(name: str) -> click.Command:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    return command


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_help(name: str) -> None:
    command = command_named(name)
    below = command.commands if isinstance(command, click.Group) else {}
    for own_name, each in {name: command, **below}.items():
        assert each.name == own_name, "the command's own name is what its usage line shows"
        assert each.help, f"{own_name} has no help"
        for parameter in each.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{own_name} {parameter.opts[0]} has no help"
            else:
                shown = parameter.make_metavar(click.Context(each)).strip("[].")
                assert shown in each.help, f"the help of {own_name} does not say what {shown} is"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme(name: str) -> None:
    assert f"compact-edge {name}" in (ROOT / "README.md").read_text("utf-8")


def test_every_module_of_commands_is_in_the_table() -> None:
    modules = {path.stem for path in (ROOT / "compact_edge" / "cli" / "commands").glob("*.py")} - {"__init__"}
    in_table = {entry.module.rpartition(".")[2] for entry in COMMANDS.values()}
    commands = {
        stem
        for stem in modules
        if any(
            isinstance(value, click.Command)
            for value in vars(import_module(f"compact_edge.cli.commands.{stem}")).values()
        )
    }
    assert commands <= in_table


def test_short_helps_are_one_sentence() -> None:
    for entry in COMMANDS.values():
        assert entry.short_help.endswith(".")
        assert len(entry.short_help) <= 60


def test_tables_of_types_are_what_was_recorded(tmp_path: Path) -> None:
    """docs/types.md against the list of types and benchmarks/results, in a copy that is then falsified."""
    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    check = [sys.executable, "-m", "benchmarks.pages.types_doc", "--check"]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(check, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    done = run()
    assert done.returncode == 0, done.stderr
    document = tmp_path / "docs" / "types.md"
    text = document.read_text("utf-8")
    document.write_text(text.replace("| IQ4_NL | 4.50 |", "| IQ4_NL | 4.40 |"), "utf-8")
    assert run().returncode == 1
    for name in QUANTS:
        assert text.count(f"\n| {name} | ") + text.count(f"\n- `{name}`: ") == 3, name
