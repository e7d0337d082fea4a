"""What a user can ask of a recovery; imported by the command line, so nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass

from compact.base.errors import UsageError

RECOVERIES = ("distill",)
TRAINED = ("all", "embeddings")
# Where neither tokens nor minutes are given.
DEFAULT_MINUTES = 30.0
LEARNING_RATE = 3e-4
# Positions of a piece of text, and how many pieces are learned from before a step.
PIECE_TOKENS = 512
PIECES_PER_STEP = 2


@dataclass(frozen=True)
class RecoverOptions:
    """How the pruned model is trained by the unpruned one; the command's flags.

    Attributes:
        method: `distill`.
        text: files, built-in texts, Hub data sets or `self`; empty takes the calibration's.
        tokens: budget in tokens of the pruned model; minutes: in minutes of wall-clock time. Whichever ends first.
        learning_rate: of AdamW at its highest.
        train: `all` weights, or `embeddings` (the embedding and the LM head).
        pieces_per_step: texts of about 512 tokens that a step learns from.
    """

    method: str = "distill"
    text: tuple[str, ...] = ()
    tokens: int | None = None
    minutes: float | None = None
    learning_rate: float = LEARNING_RATE
    train: str = "all"
    pieces_per_step: int = PIECES_PER_STEP

    def __post_init__(self) -> None:
        if self.method not in RECOVERIES:
            raise UsageError(f"--recover {self.method}: unknown", f"one of: {', '.join(RECOVERIES)}")
        if self.train not in TRAINED:
            raise UsageError(f"--train {self.train}: unknown", f"one of: {', '.join(TRAINED)}")
        if self.tokens is not None and self.tokens < 1:
            raise UsageError(f"--recover-tokens {self.tokens}: at least 1 is needed")
        if self.minutes is not None and not 0 < self.minutes < 1e6:
            raise UsageError(f"--recover-minutes {self.minutes:g}: more than 0 are needed")
        if not 0 < self.learning_rate < 1:
            raise UsageError(f"--learning-rate {self.learning_rate:g}: between 0 and 1")
        if self.pieces_per_step < 1:
            raise UsageError(f"pieces_per_step {self.pieces_per_step}: a step learns from at least 1")

    @property
    def seconds(self) -> float | None:
        """The limit in seconds of wall-clock time; the default's where neither limit is given."""
        if self.minutes is None:
            return 60 * DEFAULT_MINUTES if self.tokens is None else None
        return 60 * self.minutes
