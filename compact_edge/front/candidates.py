"""Candidates of a search: sizes and a type, with predicted figures, and the limits that a user sets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compact.pruning.budget import Sizes
from compact.pruning.budget_options import TOKENS, MinSpeed
from compact.search.find import Curve
from compact.search.predictor import Predictor
from compact.sources.model_source import ModelSource
from exporters.base import Format
from exporters.format_values import ArtifactSizes, Choices, Recipe, Target
from exporters.speed_estimate import decode_tokens_per_second

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float64]]

# Largest number of sizes I' to try. V' has at most 64.
_INNER_SIZES = 32
# The figures of a size are the sum of a part that depends on V' and one that depends on I', except for padding.
_PADDING = 256


@dataclass(frozen=True)
class SearchLimits:
    """Limits of the artifact. None: no limit.

    Attributes:
        fit_bytes: largest total size of the files.
        memory_bytes: largest resident memory with a key-value cache for `context_length` positions.
        min_speed: smallest decode speed.
        max_loss: largest loss of bits per byte, as a share of the unpruned float model's.
        context_length: positions of the key-value cache.
        bandwidth: bytes/s that the device reads; None if unknown.
        is_timed: whether the bandwidth was measured in a short run. Records then have no speeds, because they would
            differ in every run.
    """

    fit_bytes: int | None = None
    memory_bytes: int | None = None
    min_speed: MinSpeed | None = None
    max_loss: float | None = None
    context_length: int = 2048
    bandwidth: float | None = None
    is_timed: bool = False

    @property
    def max_log_loss(self) -> float:
        """The largest ln(bits per byte / the unpruned model's)."""
        return math.inf if self.max_loss is None else math.log1p(self.max_loss)


@dataclass(frozen=True)
class SearchType:
    """A recipe, resolved for the model.

    Attributes:
        format: the format with this type.
        name: short name for tables.
        body_error, head_error: see `exporters.format_values.Recipe`.
    """

    format: Format
    name: str
    body_error: float | None = None
    head_error: float | None = None


def resolve_recipe(
    kind: type[Format], target: Target, source: ModelSource, choices: Choices, recipe: Recipe
) -> SearchType:
    """Return a recipe resolved for a model. Its choices take precedence over the user's."""
    resolved = kind.resolve(target, source, quant=recipe.quant, choices={**choices, **recipe.choices})
    return SearchType(resolved, recipe.name, recipe.body_error, recipe.head_error)


@dataclass(frozen=True)
class StoredType:
    """A type of a search with what is needed to predict an artifact.

    Attributes:
        search_type: the format with its type, and the errors of its matrices.
        sizes: predicts bytes and memory.
        loss: predicted ln(bits per byte / float) of quantization alone.
    """

    search_type: SearchType
    sizes: ArtifactSizes
    loss: float

    @property
    def name(self) -> str:
        """The short name of the type."""
        return self.search_type.name


@dataclass(frozen=True)
class Candidate:
    """One size and type with predicted figures.

    Attributes:
        sizes: V' and I'.
        type: the type.
        n_bytes: total size of the files.
        memory: resident bytes; None if not predicted.
        tokens_per_second: decode speed on the device; None if its bandwidth is unknown.
        characters_per_token: expected for text in the user's languages.
        loss: predicted ln(bits per byte / the unpruned float model's).
    """

    sizes: Sizes
    type: StoredType
    n_bytes: int
    memory: int | None
    tokens_per_second: float | None
    characters_per_token: float
    loss: float

    @property
    def key(self) -> tuple[Sizes, str]:
        """Identifies the candidate."""
        return self.sizes, self.type.name

    @property
    def characters_per_second(self) -> float | None:
        """Decode speed in characters/s."""
        return None if self.tokens_per_second is None else self.tokens_per_second * self.characters_per_token


def within(candidate: Candidate, limits: SearchLimits, *, loss: float | None = None) -> bool:
    """Return whether a candidate meets all limits. `loss` replaces the predicted loss."""
    return not violations(candidate, limits, loss=loss)


def violations(candidate: Candidate, limits: SearchLimits, *, loss: float | None = None) -> list[str]:
    """Return the names of the limits that a candidate violates."""
    found = []
    if limits.fit_bytes is not None and candidate.n_bytes > limits.fit_bytes:
        found.append("--fit")
    if limits.memory_bytes is not None and (candidate.memory or 0) > limits.memory_bytes:
        found.append("--max-memory")
    if limits.min_speed is not None:
        tokens = limits.min_speed.unit == TOKENS
        speed = candidate.tokens_per_second if tokens else candidate.characters_per_second
        if speed is not None and speed < limits.min_speed.value:
            found.append("--min-speed")
    if (candidate.loss if loss is None else loss) > limits.max_log_loss:
        found.append("--max-loss")
    return found


def candidates_of(
    types: Sequence[StoredType], curve: Curve, predictor: Predictor, limits: SearchLimits
) -> list[Candidate]:
    """Return all candidates: every type at every V' and I' of the grids."""
    import numpy as np

    # The smallest vocabulary has no merges, and formats refuse a tokenizer without any.
    rows = np.array([size for size in curve.vocabulary if size > curve.limits.smallest_vocab_size])
    all_inner = _spread(curve.inner, _INNER_SIZES)
    whole = Sizes(curve.limits.vocab_size, curve.limits.intermediate_size)
    if whole.vocab_size not in curve.vocabulary:
        rows = np.append(rows, whole.vocab_size)
    losses = {(int(v), i): predictor.loss(Sizes(int(v), i)) for v in rows for i in all_inner}
    characters = [predictor.characters_per_token(int(v)) for v in rows]
    found = []
    for each in types:
        grid = each.search_type.format.channel_grid
        inner = [size for size in all_inner if size % grid == 0 or size == whole.intermediate_size]
        bytes_at = _separable(each.sizes.file_bytes, rows, inner, whole)
        memory = per_token = None
        if limits.memory_bytes is not None:
            memory = _separable(lambda s, e=each: e.sizes.memory_bytes(s, limits.context_length), rows, inner, whole)  # type: ignore[misc]
        if limits.bandwidth is not None:
            per_token = _separable(each.sizes.bytes_per_token, rows, inner, whole)
            kv_bytes = each.sizes.kv_bytes(limits.context_length)
        for n, v in enumerate(rows):
            for m, i in enumerate(inner):
                speed = None
                if per_token is not None and limits.bandwidth is not None:
                    speed = decode_tokens_per_second(int(per_token[n, m]), kv_bytes, limits.bandwidth)
                found.append(
                    Candidate(
                        Sizes(int(v), i),
                        each,
                        int(bytes_at[n, m]),
                        None if memory is None else int(memory[n, m]),
                        speed,
                        characters[n],
                        losses[int(v), i] + each.loss,
                    )
                )
    return found


def _separable(figure: Callable[[Sizes], int], rows: Array, inner: Sequence[int], whole: Sizes) -> Array:
    """Return a figure at all sizes [V', I'], computed from its values at the whole V' and at the whole I'."""
    import numpy as np

    by_rows = np.array([figure(Sizes(int(v), whole.intermediate_size)) for v in rows], dtype=np.float64)
    by_inner = np.array([figure(Sizes(whole.vocab_size, i)) for i in inner], dtype=np.float64)
    table: Array = by_rows[:, None] + by_inner[None, :] - float(figure(whole))
    table[rows < whole.vocab_size] += _PADDING
    return table


def _spread(sizes: Sequence[int], most: int) -> list[int]:
    """Return at most about `most` sizes, evenly spaced, with the largest one."""
    step = max(1, -(-len(sizes) // most))
    return list(sizes[::-1][::step][::-1])


def pareto(candidates: Sequence[Candidate], loss_of: Callable[[Candidate], float]) -> list[Candidate]:
    """Return the candidates that no other one beats in both bytes and loss, smallest file first."""
    front: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda each: (each.n_bytes, loss_of(each))):
        if not front or loss_of(candidate) < loss_of(front[-1]):
            front.append(candidate)
    return front
