"""A search over a model whose true losses are given by a formula, so that the best candidate is known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from compact.base.progress import SILENT
from compact.pruning.budget import Sizes
from compact.search.find import Curve
from compact.search.loss_model import LossLaw, fit_law
from compact.search.size_evaluator import TextScore
from compact_edge.front.candidates import SearchLimits, SearchType, StoredType
from compact_edge.front.search import FrontSearch
from compact_edge.front.type_losses import TypeLosses
from tests.compact.budgets import real_curve

CURVE, PARTS, LIMITS = real_curve("smollm2-135m")
WHOLE = Sizes(LIMITS.vocab_size, LIMITS.intermediate_size)
# Bits per weight, and the loss of the type alone.
TYPES = {"Q8_0": (8.5, 0.001), "Q5_0": (5.5, 0.012), "Q4_0": (4.5, 0.05)}


@dataclass(frozen=True)
class LinearSizes:
    """Figures that are linear in the number of parameters."""

    bits: float

    def file_bytes(self, sizes: Sizes) -> int:
        return 100_000 + self.bytes_per_token(sizes)

    def bytes_per_token(self, sizes: Sizes) -> int:
        weights = PARTS.attention + sizes.vocab_size * PARTS.per_row + sizes.intermediate_size * PARTS.per_channel
        return int(weights * self.bits / 8)

    def weights_per_token(self, sizes: Sizes) -> int:
        return PARTS.attention + sizes.intermediate_size * PARTS.per_channel

    def memory_bytes(self, sizes: Sizes, context: int) -> int:
        return self.file_bytes(sizes) + 5_000_000 + self.kv_bytes(context)

    def kv_bytes(self, context: int) -> int:
        return 1000 * context


@dataclass
class KnownPredictor:
    """Predicts the formula exactly, times `optimism`."""

    optimism: float = 1.0
    whole: Sizes = WHOLE
    unpruned: Any = field(default_factory=lambda: SimpleNamespace(texts={"text": TextScore(1.0, 100, 400)}))
    evaluator: Any = field(default_factory=lambda: SimpleNamespace(texts={"text": "x" * 400}))
    vocabulary_law: LossLaw = field(default_factory=lambda: fit_law([(1.0, 1.0)], 1.0))
    ffn_law: LossLaw = field(default_factory=lambda: fit_law([(1.0, 1.0)], 1.5))

    def loss(self, sizes: Sizes) -> float:
        return self.optimism * true_cut_loss(sizes)

    def characters_per_token(self, vocab_size: int) -> float:
        return 4.0 / (1 + _extra(vocab_size))

    def correction(self, sizes: Sizes, texts: Mapping[str, TextScore]) -> float:
        return 0.0


@dataclass
class KnownTrials:
    """Scores by the formula, and keeps a list of what was scored."""

    scored: list[tuple[Sizes, str]] = field(default_factory=list)

    def score(self, sizes: Sizes, artifact_format: Any) -> dict[str, TextScore]:
        self.scored.append((sizes, artifact_format.name))
        loss = true_cut_loss(sizes) + TYPES[artifact_format.name][1]
        return {"text": TextScore(math.exp(loss), 100, 400)}


def _extra(vocab_size: int) -> float:
    dropped = 1 - vocab_size / WHOLE.vocab_size
    return 0.1 * dropped + 0.1 * dropped**2


def true_cut_loss(sizes: Sizes) -> float:
    """ln(bits per byte / the unpruned model's) of a cut."""
    return _extra(sizes.vocab_size) + 0.8 * (1 - sizes.intermediate_size / WHOLE.intermediate_size) ** 1.5


def true_loss(sizes: Sizes, name: str) -> float:
    """The same with a type."""
    return true_cut_loss(sizes) + TYPES[name][1]


def synthetic_search(
    limits: SearchLimits, *, optimism: float = 1.0, curve: Curve = CURVE, names: tuple[str, ...] = tuple(TYPES)
) -> tuple[FrontSearch, KnownTrials]:
    """A search, and the trials that it makes."""
    trials = KnownTrials()
    types = [
        StoredType(
            SearchType(SimpleNamespace(name=name, channel_grid=32), name),  # type: ignore[arg-type]
            LinearSizes(TYPES[name][0]),
            TYPES[name][1],
        )
        for name in names
    ]
    search = FrontSearch(
        SimpleNamespace(progress=SILENT),  # type: ignore[arg-type]
        curve,
        KnownPredictor(optimism),  # type: ignore[arg-type]
        types,
        trials,  # type: ignore[arg-type]
        limits,
        TypeLosses(1.0, 1.0, {}),
    )
    return search, trials
