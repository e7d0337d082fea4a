"""Where a run of training is."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class State:
    """Where a run is.

    Attributes:
        step, pieces, tokens, seconds: done so far; tokens are the student's, pieces those taken from the text.
        history: one entry an evaluation: step, tokens, seconds, done (the share of the budget), loss (mean of the rows
            since the evaluation before, in nats) and bits per byte of every held-out text.
        best: index of the best entry.
        loss: of the steps since the last entry (mean of the rows, in nats).
    """

    step: int = 0
    pieces: int = 0
    tokens: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: int = 0
    loss: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
