"""Find where a model needs more bits than another on a text: in words that it splits, just after them, or elsewhere.

The text is cut at every byte where both models have a token boundary. Both models need some number of bits for each
resulting segment. The difference, called excess, can be summed over any set of segments.

Each model uses its own window as context. A model with shorter tokens has fewer bytes in a window with the same number
of positions. The cost of this is part of the excess.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compact.base.errors import CalibrationError

# How many tokens after a split word are counted separately.
AFTER = 8
# Classes of segments, in the order of reports.
SPLIT, NEAR, OTHER = "split", "after_split", "other"
CLASSES = (SPLIT, NEAR, OTHER)


@dataclass(frozen=True)
class ScoredTokens:
    """The tokens of a text in one model.

    Attributes:
        ids: the token ids, [T].
        ends: int64 [T], the byte offset in the text where each token ends.
        bits: float64 [T], bits that each token costs; 0 for a token that is only context.
        first: number of tokens at the start that are only context: 1 without BOS, 0 with BOS.
    """

    ids: Sequence[int]
    ends: NDArray[np.int64]
    bits: NDArray[np.float64]
    first: int

    @property
    def begins(self) -> NDArray[np.int64]:
        """Byte offset where each token begins, int64 [T]."""
        return np.concatenate([np.zeros(1, dtype=np.int64), self.ends[:-1]])


@dataclass(frozen=True)
class Segments:
    """The segments between common token boundaries. Every array has one entry per segment, [S].

    Names with `against` belong to the other model.

    Attributes:
        begins, ends: byte offsets in the text.
        tokens, against_tokens: number of tokens in the segment.
        first_token, first_against: index of the segment's first token.
        bits, against_bits: bits that the segment costs.
        kinds: class of the segment, as an index into `CLASSES`.
    """

    begins: NDArray[np.int64]
    ends: NDArray[np.int64]
    tokens: NDArray[np.int64]
    against_tokens: NDArray[np.int64]
    first_token: NDArray[np.int64]
    first_against: NDArray[np.int64]
    bits: NDArray[np.float64]
    against_bits: NDArray[np.float64]
    kinds: NDArray[np.int8]

    @property
    def excess(self) -> NDArray[np.float64]:
        """Bits that the model needs more than the other one, [S]."""
        return self.bits - self.against_bits

    @property
    def n_bytes(self) -> int:
        return int((self.ends - self.begins).sum())


@dataclass(frozen=True)
class Totals:
    """Sums over the segments of a class.

    Attributes:
        name: the class, one of `CLASSES`.
        segments: number of segments.
        n_bytes: bytes of the text in these segments.
        tokens, against_tokens: tokens of each model.
        bits, against_bits: bits that these tokens cost.
    """

    name: str
    segments: int
    n_bytes: int
    tokens: int
    against_tokens: int
    bits: float
    against_bits: float

    @property
    def excess(self) -> float:
        """Bits that the model needs more than the other one."""
        return self.bits - self.against_bits


@dataclass(frozen=True)
class Word:
    """A token of the other model that the model splits.

    Attributes:
        token_id: its id in the other model.
        count: how often the model splits it in the text.
        excess: bits that the model needs more than the other one for it, summed over all occurrences.
        cuts: where the model splits its first occurrence, as bytes before the end of the word, in text order.
    """

    token_id: int
    count: int
    excess: float
    cuts: tuple[int, ...]


def align(model: ScoredTokens, against: ScoredTokens) -> Segments:
    """Cut the text where both models have a token boundary, and classify the segments.

    - `split`: the model has more tokens than the other one, or equally many with different boundaries. It therefore
      splits a token of the other model.
    - `after_split`: the segment begins at most `AFTER` tokens (of the model) after the last token of a split segment.
    - `other`: all other segments.

    If a model has no score for the first token, the first segment is left out.

    Args:
        model: the text's tokens in the model.
        against: the text's tokens in the other model.

    Raises:
        CalibrationError: no segment is left.
    """
    cuts = np.intersect1d(model.ends, against.ends)
    cuts = cuts[cuts > 0]  # [S]
    # For each token, the index of its segment: [T] of each model.
    model_segments, against_segments = _segment_of(model, cuts), _segment_of(against, cuts)
    tokens = np.bincount(model_segments, minlength=len(cuts))
    against_tokens = np.bincount(against_segments, minlength=len(cuts))
    first_token, first_against = np.cumsum(tokens) - tokens, np.cumsum(against_tokens) - against_tokens
    begins = np.concatenate([np.zeros(1, dtype=np.int64), cuts[:-1]])
    # Boundaries of the model inside segments. Empty tokens at the edge of a segment do not count.
    inside = np.setdiff1d(model.ends, np.append(cuts, 0))
    cut_inside = np.bincount(np.searchsorted(cuts, inside), minlength=len(cuts)) > 0
    split = (tokens > against_tokens) | ((tokens == against_tokens) & cut_inside)
    # Index of the last token of the last split segment before each segment, or a distant index if there is none.
    last = np.where(split, first_token + tokens - 1, -AFTER - 1)
    before = np.concatenate([np.array([-AFTER - 1]), np.maximum.accumulate(last)[:-1]])
    near = ~split & (first_token - before <= AFTER)
    kinds = np.where(split, 0, np.where(near, 1, 2)).astype(np.int8)
    segments = Segments(
        begins=begins,
        ends=cuts,
        tokens=tokens,
        against_tokens=against_tokens,
        first_token=first_token,
        first_against=first_against,
        bits=_sums(model_segments, model.bits, len(cuts)),
        against_bits=_sums(against_segments, against.bits, len(cuts)),
        kinds=kinds,
    )
    left_out = 1 if model.first or against.first else 0
    if len(cuts) <= left_out:
        raise CalibrationError("the two models have no token boundary in common in this text", "give a longer text")
    return Segments(**{name: values[left_out:] for name, values in vars(segments).items()})


def _segment_of(scored: ScoredTokens, cuts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the index of each token's segment, [T]. An empty token belongs to the segment after it."""
    places = np.where(
        scored.begins < scored.ends,
        np.searchsorted(cuts, scored.ends, side="left"),
        np.searchsorted(cuts, scored.ends, side="right"),
    )
    return np.minimum(places, len(cuts) - 1)


def _sums(places: NDArray[np.int64], values: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Sum the values of each segment, [n]."""
    sums = np.zeros(n)
    np.add.at(sums, places, values)
    return sums


def totals(segments: Segments) -> tuple[Totals, ...]:
    """Return the sums of each class, in the order of `CLASSES`. The sum of their excess is that of all segments."""
    result = []
    for index, name in enumerate(CLASSES):
        chosen = segments.kinds == index
        result.append(
            Totals(
                name,
                int(chosen.sum()),
                int((segments.ends - segments.begins)[chosen].sum()),
                int(segments.tokens[chosen].sum()),
                int(segments.against_tokens[chosen].sum()),
                float(segments.bits[chosen].sum()),
                float(segments.against_bits[chosen].sum()),
            )
        )
    return tuple(result)


def split_words(
    segments: Segments, model: ScoredTokens, against: ScoredTokens, lacks: Callable[[int], bool]
) -> list[Word]:
    """Return the tokens of the other model that the model splits, most expensive first.

    A split segment is usually one token of the other model. If it is several, its excess is divided equally among the
    tokens that the model splits and lacks. If it lacks none, the excess is divided among all that it splits.

    Args:
        segments: the result of `align`.
        model, against: the arguments of `align`.
        lacks: whether the model has no token with the same bytes as this id of the other model.

    Returns:
        The split tokens. The sum of their excess is that of the split segments.
    """
    counts: dict[int, int] = {}
    excess: dict[int, float] = {}
    cuts: dict[int, tuple[int, ...]] = {}
    begins = against.begins
    for at in np.flatnonzero(segments.kinds == 0).tolist():
        first = int(segments.first_against[at])
        places = range(first, first + int(segments.against_tokens[at]))
        inner = {place: _cuts(model.ends, int(begins[place]), int(against.ends[place])) for place in places}
        cut = [place for place in places if inner[place]] or list(places)
        words = [place for place in cut if lacks(against.ids[place])] or cut
        share = float(segments.bits[at] - segments.against_bits[at]) / len(words)
        for place in words:
            token_id = against.ids[place]
            counts[token_id] = counts.get(token_id, 0) + 1
            excess[token_id] = excess.get(token_id, 0.0) + share
            cuts.setdefault(token_id, inner[place])
    words_found = [Word(token_id, counts[token_id], excess[token_id], cuts[token_id]) for token_id in counts]
    return sorted(words_found, key=lambda word: (-word.excess, word.token_id))


def _cuts(ends: NDArray[np.int64], begin: int, end: int) -> tuple[int, ...]:
    """Return the boundaries strictly between two byte offsets, as distances from the end."""
    inner = np.unique(ends[np.searchsorted(ends, begin, side="right") : np.searchsorted(ends, end, side="left")])
    return tuple(end - int(place) for place in inner)
