"""The progress of a training run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class State:
    """The progress of a training run.

    Attributes:
        step: number of optimizer steps done.
        pieces: number of pieces taken from the text.
        tokens: number of tokens trained on, by the student's tokenizer.
        seconds: training time.
        history: one entry per evaluation, with step, tokens, seconds, done (share of the budget), loss (mean over the
            rows since the previous evaluation, in nats), and bits per byte of every held-out text.
        best: index of the best entry.
        loss: loss of the steps since the last entry (mean over the rows, in nats).
        rate_factor: factor for the learning rate. It gets smaller when the model got worse.
    """

    step: int = 0
    pieces: int = 0
    tokens: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: int = 0
    loss: float = 0.0
    rate_factor: float = 1.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
