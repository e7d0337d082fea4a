"""Finds the format of an artifact that the user names, and opens it in its runtime."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compact.base.errors import UsageError
from exporters.base import Format
from exporters.registry import formats

if TYPE_CHECKING:
    from compact.base.progress import Progress
    from compact.forward.evaluate import Evaluation, TextScorer
    from compact.vocabulary.token_pieces import TokenPieces
    from exporters.task_runtime import Runtime


@dataclass(frozen=True)
class NamedArtifact:
    """An artifact that a user named.

    Attributes:
        format: class of its format.
        path: file or folder that the runtime opens.
    """

    format: type[Format]
    path: Path

    def open(self, *, threads: int, window: int | None = None) -> AbstractContextManager[TextScorer]:
        """See `Format.open`."""
        return self.format.open(self.path, threads=threads, window=window)

    def pieces(self) -> TokenPieces:
        """See `Format.pieces`."""
        return self.format.pieces(self.path)

    def score(self, text: str, *, threads: int, progress: Progress, window: int | None = None) -> Evaluation:
        """See `Format.score`."""
        return self.format.score(self.path, text, threads=threads, progress=progress, window=window)

    def open_for_tasks(self, *, threads: int, batch_size: int) -> Runtime:
        """See `Format.open_for_tasks`."""
        return self.format.open_for_tasks(self.path, threads=threads, batch_size=batch_size)


def named_artifact(model: str, pre: str | None = None) -> NamedArtifact | None:
    """Return the named artifact; None for other kinds of models (a checkpoint, a Hub id, a built-in model).

    Args:
        model: the model, as the user named it.
        pre: name of the pre-tokenizer to use instead of the artifact's own (`--pre`), or None.

    Raises:
        UsageError: `pre` does not apply to the model.
        CompactEdgeError: a file looks like an artifact but is not one.
    """
    for each in formats():
        path = each.recognises(model)
        if path is not None:
            return NamedArtifact(each if pre is None else each.with_pre(path, pre), path)
    if pre is not None:
        raise UsageError(f"--pre {pre[:60]}: {model} has its own tokenizer.json", "leave it out; it is for a GGUF file")
    return None
