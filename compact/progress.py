"""How long work reports: a protocol that the front door implements and library code calls.

Library code never prints; it takes a `Progress` and the default, `SILENT`, does nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Task(Protocol):
    """One running piece of work."""

    def advance(self, amount: int = 1) -> None:
        """Add `amount` units of finished work."""


class Progress(Protocol):
    """Where long work reports to."""

    def task(self, description: str, total: int | None, unit: str) -> AbstractContextManager[Task]:
        """Open a task of `total` units (`unit` in the plural: tokens, tensors); None where the total is unknown."""

    def note(self, text: str) -> None:
        """Tell the user one thing worth knowing (one line)."""


class _SilentTask:
    def advance(self, amount: int = 1) -> None:
        del amount


class _Silent:
    @contextmanager
    def task(self, description: str, total: int | None, unit: str) -> Iterator[Task]:
        del description, total, unit
        yield _SilentTask()

    def note(self, text: str) -> None:
        del text


SILENT: Progress = _Silent()
