"""Quoting: turns arguments into one line for a POSIX shell.

`ssh` and `adb shell` join their arguments with spaces and pass the result to the device's shell. They therefore get
exactly one argument, which this module makes.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from compact.base.errors import UsageError

_BREAKS = ("\n", "\r")


def shell_line(words: Sequence[str]) -> str:
    """Return one line that a POSIX shell splits into exactly `words`.

    Raises:
        UsageError: `words` is empty, or a word contains a NUL (arguments cannot), a line break (some login shells and
            clients do not pass it on), or a character that UTF-8 cannot encode.
    """
    if not words:
        raise UsageError("a command for the device is empty")
    for word in words:
        _check(word, breaks=True)
    return shlex.join(words)


def script_line(script: str, words: Sequence[str], *, inner: str | None = None) -> str:
    """Return one command that runs `script` with `words` as its `$1`, `$2`, ...

    Args:
        script: a constant text of this package; it may have line breaks.
        words: its arguments. They may not have line breaks, except `inner`.
        inner: another script of this package among `words`, which the first one runs.

    Raises:
        UsageError: see `shell_line`.
    """
    _check(script, breaks=False)
    for word in words:
        _check(word, breaks=word is not inner)
    return shlex.join(["sh", "-c", script, "compact-edge", *words])


def _check(word: str, *, breaks: bool) -> None:
    shown = ascii(word[:80])
    if "\0" in word:
        raise UsageError(f"{shown} has a NUL character, which a command line cannot have", "rename the file")
    if breaks and any(mark in word for mark in _BREAKS):
        raise UsageError(f"{shown} has a line break, which a remote command line cannot have", "rename the file")
    try:
        word.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(f"{shown} is not UTF-8 text", "rename the file") from None
