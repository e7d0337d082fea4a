"""The protocol by which long tasks report progress.

Library code never prints. It takes a `Progress`, which the command line implements. The default, `SILENT`, does
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Task(Protocol):
    """A running task."""

    def advance(self, amount: int = 1) -> None:
        """Report `amount` more units as finished."""


class Progress(Protocol):
    """Receives progress and notes from long tasks."""

    def task(self, description: str, total: int | None, unit: str) -> AbstractContextManager[Task]:
        """Open a task.

        Args:
            description: shown to the user.
            total: number of units, or None if unknown.
            unit: name of the units in the plural, such as tokens or tensors.
        """

    def note(self, text: str) -> None:
        """Show one line of information to the user."""


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
