"""The options of `--recover`. The command line imports this module, so it must not import heavy packages."""

from __future__ import annotations

from dataclasses import dataclass, replace

from compact.base.errors import UsageError

RECOVERIES = ("distill",)
TRAINED = ("all", "embeddings")
# Time limit if neither tokens nor minutes are given.
DEFAULT_MINUTES = 30.0
# Approximate tokens per piece of text. Attention over longer pieces costs more, and did not teach more.
PIECE_TOKENS = 256
# Dropped words that are drawn for each piece of text, to teach how they are written (`compact.distill.branches`).
BRANCHES = 48


@dataclass(frozen=True)
class RelativeRates:
    """Peak learning rates, as shares of the root mean square of each weight matrix.

    Models differ in the size of their weights: an absolute rate of 3e-4 is right for SmolLM2-135M (0.2), and ruins
    Gemma 3 270M (0.04) and Qwen2.5 0.5B (0.015).

    Attributes:
        weights: of the layers' matrices.
        embeddings: of the embedding and the LM head.
        pieces_per_step: number of pieces of text per optimizer step that suits these rates.
    """

    weights: float
    embeddings: float
    pieces_per_step: int


# Layers that were not cut need little change, and are soon damaged. Embedding and LM head then learn most.
VOCABULARY_CUT = RelativeRates(2e-4, 3e-3, 1)
FFN_CUT = RelativeRates(1.5e-3, 1.5e-3, 4)


@dataclass(frozen=True)
class RecoverOptions:
    """How to train the pruned model with the unpruned one as teacher. The fields correspond to command-line flags.

    Attributes:
        method: `distill`.
        text: files, built-in texts, Hub data sets or `self`. If empty, the calibration texts are used.
        tokens: budget in tokens of the pruned model. Training stops at the first limit that it reaches.
        minutes: budget in minutes of wall-clock time.
        until: stop when held-out text costs at most this share more than in the unpruned model, such as 0.02.
        learning_rate: peak learning rate of AdamW for all weights. None gives each matrix a rate of its own
            (`RelativeRates`).
        train: `all` weights, or `embeddings` (the embedding and the LM head).
        branches: number of dropped words per text that branches teach. 0 teaches only the words of the running text.
        pieces_per_step: number of texts of about 256 tokens per optimizer step. None takes the number of the rates.
    """

    method: str = "distill"
    text: tuple[str, ...] = ()
    tokens: int | None = None
    minutes: float | None = None
    until: float | None = None
    learning_rate: float | None = None
    train: str = "all"
    branches: int = BRANCHES
    pieces_per_step: int | None = None

    def __post_init__(self) -> None:
        if self.method not in RECOVERIES:
            raise UsageError(f"--recover {self.method}: unknown", f"one of: {', '.join(RECOVERIES)}")
        if self.train not in TRAINED:
            raise UsageError(f"--train {self.train}: unknown", f"one of: {', '.join(TRAINED)}")
        if self.tokens is not None and self.tokens < 1:
            raise UsageError(f"--recover-tokens {self.tokens}: at least 1 is needed")
        if self.minutes is not None and not 0 < self.minutes < 1e6:
            raise UsageError(f"--recover-minutes {self.minutes:g}: expected more than 0 and less than 1e6")
        if self.until is not None and not 0 < self.until < 1:
            raise UsageError(f"--recover-until {self.until:.1%}: expected a share above 0% and below 100%")
        if self.learning_rate is not None and not 0 < self.learning_rate < 1:
            raise UsageError(f"--learning-rate {self.learning_rate:g}: expected a value between 0 and 1")
        if self.branches < 0:
            raise UsageError(f"branches {self.branches}: at least 0 is needed")
        if self.pieces_per_step is not None and self.pieces_per_step < 1:
            raise UsageError(f"pieces_per_step {self.pieces_per_step}: at least 1 is needed")

    def rates(self, *, only_vocabulary: bool) -> RelativeRates:
        """Return the default learning rates of a cut, with the number of pieces per step that the options ask for."""
        rates = VOCABULARY_CUT if only_vocabulary else FFN_CUT
        return rates if self.pieces_per_step is None else replace(rates, pieces_per_step=self.pieces_per_step)

    @property
    def seconds(self) -> float | None:
        """The time limit in seconds, or None if only `tokens` is given. The default applies if neither is given."""
        if self.minutes is None:
            return 60 * DEFAULT_MINUTES if self.tokens is None else None
        return 60 * self.minutes
