"""The one place that turns words into a line for a POSIX shell.

`ssh` and `adb shell` both join their arguments with spaces and hand the result to the device's shell, so exactly one
argument is passed to them: a line from here.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from compact.errors import UsageError

_BREAKS = ("\n", "\r")


def shell_line(words: Sequence[str]) -> str:
    """One line that a POSIX shell splits into exactly `words`.

    Raises:
        UsageError: no words, a NUL (no argument can hold one), a line break (not every login shell and not every
            client carries one), or a character that UTF-8 cannot write.
    """
    if not words:
        raise UsageError("a command for the device is empty")
    for word in words:
        _check(word, breaks=True)
    return shlex.join(words)


def script_line(script: str, words: Sequence[str], *, inner: str | None = None) -> str:
    """One command that runs `script`, a constant text of this package, with `words` as its `$1`, `$2`, ...

    A script may have many lines: it holds no others than those of this package. The words may not, but for `inner`,
    another of these scripts that the first is to run. Raises UsageError as `shell_line`.
    """
    _check(script, breaks=False)
    for word in words:
        _check(word, breaks=word is not inner)
    return shlex.join(["sh", "-c", script, "compact-edge", *words])


def _check(word: str, *, breaks: bool) -> None:
    shown = ascii(word[:80])
    if "\0" in word:
        raise UsageError(f"{shown} holds a NUL character, which no command line can carry", "rename the file")
    if breaks and any(mark in word for mark in _BREAKS):
        raise UsageError(f"{shown} holds a line break, which a remote command line cannot carry", "rename the file")
    try:
        word.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(f"{shown} is no UTF-8 text", "rename the file") from None
