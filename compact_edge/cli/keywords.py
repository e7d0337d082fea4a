"""Reads Python keywords as the flags of a command, with the same click parameters that the command line uses."""

from __future__ import annotations

import os
from difflib import get_close_matches
from numbers import Real
from typing import Any

import click

from compact.base.errors import UsageError
from compact_edge.cli.failure import describe
from compact_edge.flags import QuantCommand

# The command line prints. A function returns its result.
_NOT_KEYWORDS = frozenset({"json", "debug"})


def flag_values(command: click.Command, model: str | os.PathLike[str], flags: dict[str, Any]) -> dict[str, Any]:
    """Return what `command` would be called with.

    Args:
        command: the command.
        model: its argument.
        flags: keyword -> value. A keyword is a flag without `--`, with `_` for `-`. None means that
            a flag is not given. A flag that may be repeated takes one value, or a list or tuple of values.

    Raises:
        TypeError: a keyword is not a flag of the command.
        UsageError: a flag is missing, or its value is not valid.
    """
    options = {_keyword(each): each for each in command.params if isinstance(each, click.Option)}
    options = {keyword: option for keyword, option in options.items() if keyword not in _NOT_KEYWORDS}
    for keyword in flags:
        if keyword not in options:
            near = get_close_matches(keyword, options, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise TypeError(f"{command.name}() got an unexpected keyword argument {keyword!r}{hint}")
    words = [word for keyword, value in flags.items() for word in _words(options[keyword], value)]
    if isinstance(command, QuantCommand) and "--quant=list" in words:
        raise UsageError("--quant list: prints the types and ends", f"run compact-edge {command.name} --quant list")
    program = click.Context(click.Group(), info_name="compact-edge")
    try:
        context = command.make_context(command.name, [*words, "--", os.fspath(model)], parent=program)
    except click.ClickException as error:
        failure = describe(error)
        raise UsageError(failure.message or str(error), failure.hint) from error
    return {name: value for name, value in context.params.items() if name != "as_json"}


def _keyword(option: click.Option) -> str:
    """Return `--vocab-size` -> `vocab_size`. The name of the command's own parameter may differ."""
    return max(option.opts, key=len).lstrip("-").replace("-", "_")


def _words(option: click.Option, value: Any) -> list[str]:
    """Return what the command line would have for this value."""
    name = max(option.opts, key=len)
    if value is None:
        return []
    if option.is_flag:
        if not isinstance(value, bool):
            raise UsageError(f"{name}: {value!r} is not valid", "give True or False")
        return [name] if value else []
    values = value if option.multiple and isinstance(value, list | tuple) else [value]
    return [f"{name}={_text(name, each)}" for each in values]


def _text(name: str, value: Any) -> str:
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if not isinstance(value, bool) and isinstance(value, Real):
        return str(value)
    raise UsageError(f"{name}: {value!r} is not valid", "give a text, a path or a number")
