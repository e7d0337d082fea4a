"""Where one model loses to another on a text: in words that it splits, just after them, or elsewhere.

Both segmentations are laid over the bytes of the text, and the text is cut wherever both have a token boundary. Every
such segment has bits in either model, so their difference can be added up over any set of segments.

The context of a token is what the model's own window holds. A model with shorter tokens has fewer bytes in a window of
as many positions; what that costs is part of the excess.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compact.errors import CalibrationError

# Tokens after a split word that are counted apart.
AFTER = 8
# The classes of segments, in the order in which they are reported.
SPLIT, NEAR, OTHER = "split", "after_split", "other"
CLASSES = (SPLIT, NEAR, OTHER)


@dataclass(frozen=True)
class ScoredTokens:
    """A text as one model reads it.

    Attributes:
        ids: the T tokens.
        ends: int64 [T], where each token ends in the text's bytes.
        bits: float64 [T], what each token costs; 0 for one that is context only.
        first: tokens at the start that are context only: 1 without BOS, else 0.
    """

    ids: Sequence[int]
    ends: NDArray[np.int64]
    bits: NDArray[np.float64]
    first: int

    @property
    def begins(self) -> NDArray[np.int64]:
        """Where each token begins, int64 [T]."""
        return np.concatenate([np.zeros(1, dtype=np.int64), self.ends[:-1]])


@dataclass(frozen=True)
class Segments:
    """The text, cut where both models have a token boundary. Every array has one entry per segment, [S].

    Attributes:
        begins, ends: bytes of the text.
        tokens, against_tokens: how many tokens each model has there.
        first_token, first_against: index of the first of them.
        bits, against_bits: what they cost.
        kinds: index into `CLASSES`.
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
        """Bits that the model needs above the other, [S]."""
        return self.bits - self.against_bits

    @property
    def n_bytes(self) -> int:
        return int((self.ends - self.begins).sum())


@dataclass(frozen=True)
class Totals:
    """Sums over the segments of a class.

    Attributes:
        name: of `CLASSES`.
        segments: how many.
        n_bytes: of the text.
        tokens, against_tokens: of either model.
        bits, against_bits: what they cost.
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
        """Bits that the model needs above the other."""
        return self.bits - self.against_bits


@dataclass(frozen=True)
class Word:
    """A token of the other model that the model splits.

    Attributes:
        token_id: of the other model.
        count: how often the model splits it in the text.
        excess: bits that the model needs above the other for it, over all times.
        cuts: where the model cuts it the first time, in bytes before its end; the first cut of the word first.
    """

    token_id: int
    count: int
    excess: float
    cuts: tuple[int, ...]


def align(model: ScoredTokens, against: ScoredTokens) -> Segments:
    """Cut the text where both models have a token boundary, and sort the segments into classes.

    A segment is `split` where the model has more tokens than the other, or as many with other boundaries: it then cuts
    a token of the other. It is `after_split` where its first token is at most `AFTER` tokens of the model after the
    last token of a split segment. The segment that holds a token without a score, in either model, is left out.

    Raises:
        CalibrationError: no segment is left.
    """
    cuts = np.intersect1d(model.ends, against.ends)
    cuts = cuts[cuts > 0]  # [S]
    own, other = _segment_of(model, cuts), _segment_of(against, cuts)  # [T of each] -> segment
    tokens, against_tokens = np.bincount(own, minlength=len(cuts)), np.bincount(other, minlength=len(cuts))
    first_token, first_against = np.cumsum(tokens) - tokens, np.cumsum(against_tokens) - against_tokens
    begins = np.concatenate([np.zeros(1, dtype=np.int64), cuts[:-1]])
    # A model's boundaries inside of segments; empty tokens at a segment's edge are not counted.
    inside = np.setdiff1d(model.ends, np.append(cuts, 0))
    cut_inside = np.bincount(np.searchsorted(cuts, inside), minlength=len(cuts)) > 0
    split = (tokens > against_tokens) | ((tokens == against_tokens) & cut_inside)
    # Index of the last token of the last split segment before each segment; far away where there is none.
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
        bits=_sums(own, model.bits, len(cuts)),
        against_bits=_sums(other, against.bits, len(cuts)),
        kinds=kinds,
    )
    left_out = 1 if model.first or against.first else 0
    if len(cuts) <= left_out:
        raise CalibrationError("the two models have no token boundary in common in this text", "give a longer text")
    return Segments(**{name: values[left_out:] for name, values in vars(segments).items()})


def _segment_of(scored: ScoredTokens, cuts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The segment of each token. An empty token belongs to the text that follows it."""
    places = np.where(
        scored.begins < scored.ends,
        np.searchsorted(cuts, scored.ends, side="left"),
        np.searchsorted(cuts, scored.ends, side="right"),
    )
    return np.minimum(places, len(cuts) - 1)


def _sums(places: NDArray[np.int64], values: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Sum of the values of each place, [n]."""
    sums = np.zeros(n)
    np.add.at(sums, places, values)
    return sums


def totals(segments: Segments) -> tuple[Totals, ...]:
    """The sums of each class, in the order of `CLASSES`. Their excess sums to that of the whole text."""
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
    """The other model's tokens that the model splits, the most expensive first.

    A split segment is mostly one token of the other model. Where it is several, its excess is shared equally by those
    that the model lacks; where the model has all of them, by those that it cuts.

    Args:
        segments: of `align`.
        model, against: its arguments.
        lacks: whether the model has no token of the same bytes as this id of the other.

    Returns:
        Their excess sums to that of the split segments.
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
    """Boundaries strictly between two bytes, counted back from the last."""
    inner = np.unique(ends[np.searchsorted(ends, begin, side="right") : np.searchsorted(ends, end, side="left")])
    return tuple(end - int(place) for place in inner)
