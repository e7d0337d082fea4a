"""Where the excess lies: by hand on one sentence, and against a plain loop over any two segmentations."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compact.base.errors import CalibrationError
from compact.forward.excess import AFTER, CLASSES, ScoredTokens, align, split_words, totals


def tokens(*pieces: str, bits: Sequence[float], first: int = 0) -> ScoredTokens:
    """A reading of the pieces' text; a token's id is its piece as a number."""
    ends = np.cumsum([len(piece) for piece in pieces])
    return ScoredTokens([token_id(piece) for piece in pieces], ends, np.array(bits, dtype=np.float64), first)


def token_id(piece: str) -> int:
    return int.from_bytes(piece.encode())


def test_a_sentence() -> None:
    model = tokens("A", " fox", " ju", "mp", "s", " over", " it", bits=[1, 2, 8, 4, 2, 5, 1])
    against = tokens("A", " fox", " jumps", " over", " it", bits=[1, 3, 6, 4, 1])
    segments = align(model, against)
    assert segments.tokens.tolist() == [1, 1, 3, 1, 1]
    assert [CLASSES[kind] for kind in segments.kinds] == ["other", "other", "split", "after_split", "after_split"]
    assert {part.name: part.excess for part in totals(segments)} == {"split": 8, "after_split": 1, "other": -1}
    (word,) = split_words(segments, model, against, lambda _: True)
    assert (word.token_id, word.count, word.excess, word.cuts) == (token_id(" jumps"), 1, 8, (3, 1))


def test_eight_tokens_after_a_split_and_no_more() -> None:
    rest = [f" {letter}" for letter in "abcdefghijkl"]
    model = tokens("ju", "mp", *rest, bits=[0] * 14)
    kinds = align(model, tokens("jump", *rest, bits=[0] * 13)).kinds.tolist()
    assert [CLASSES[kind] for kind in kinds] == ["split", *["after_split"] * 8, *["other"] * 4]


def test_as_many_tokens_with_other_boundaries_are_a_split_of_what_the_model_lacks() -> None:
    model, against = tokens("ab", "c", bits=[5, 5]), tokens("a", "bc", bits=[2, 3])
    segments = align(model, against)
    assert segments.kinds.tolist() == [0]
    (word,) = split_words(segments, model, against, lambda i: i == token_id("bc"))
    assert (word.token_id, word.excess, word.cuts) == (token_id("bc"), 5, (1,))


def test_two_missing_words_in_one_segment_share_its_excess() -> None:
    model = tokens("a", "bc", "d", "e", bits=[4, 4, 4, 4])
    against = tokens("ab", "cd", "e", bits=[1, 1, 1])
    segments = align(model, against)
    assert segments.ends.tolist() == [4, 5]
    words = split_words(segments, model, against, lambda i: True)
    assert {word.token_id: word.excess for word in words} == {token_id("ab"): 5, token_id("cd"): 5}
    # Where the model has one of them, the other alone is the reason.
    (word,) = split_words(segments, model, against, lambda i: i == token_id("ab"))
    assert (word.token_id, word.excess) == (token_id("ab"), 10)


def test_fewer_tokens_than_the_other_is_no_split() -> None:
    segments = align(tokens("ab", "c", bits=[1, 1]), tokens("a", "b", "c", bits=[3, 3, 1]))
    assert segments.kinds.tolist() == [2, 2]
    assert segments.excess.tolist() == [-5, 0]


def test_a_mark_for_a_space_in_front_takes_no_bytes() -> None:
    """SentencePiece's first mark alone, where the other has it in its first token."""
    model, against = tokens("", "Hi", "!", bits=[2, 3, 1]), tokens("Hi", "!", bits=[1, 1])
    segments = align(model, against)
    assert segments.begins.tolist() == [0, 2]
    assert segments.kinds.tolist() == [0, 1]
    # The same in both splits nothing.
    assert align(model, model).kinds.tolist() == [2, 2]


@pytest.mark.parametrize(("first", "first_against"), [(1, 0), (0, 1), (1, 1)])
def test_what_one_model_does_not_score_counts_for_neither(first: int, first_against: int) -> None:
    model = tokens("ju", "mp", " on", bits=[0 if first else 7, 2, 3], first=first)
    against = tokens("jump", " on", bits=[0 if first_against else 7, 1], first=first_against)
    segments = align(model, against)
    assert (segments.begins.tolist(), segments.n_bytes, segments.excess.tolist()) == ([4], 3, [2])
    assert segments.kinds.tolist() == [1], "it follows a split word all the same"


def test_no_boundary_in_common() -> None:
    with pytest.raises(CalibrationError, match="no token boundary"):
        align(tokens("ab", "c", bits=[0, 1], first=1), tokens("a", "bc", bits=[0, 1], first=1))


@st.composite
def readings(draw: st.DrawFn) -> tuple[ScoredTokens, ScoredTokens]:
    """Two segmentations of one text; a token's id is its place in the bytes."""
    length = draw(st.integers(1, 60))

    def reading() -> ScoredTokens:
        ends = [*sorted(draw(st.sets(st.integers(1, length - 1))) if length > 1 else ()), length]
        ids = [begin * 100 + end for begin, end in pairwise([0, *ends])]
        bits = draw(st.lists(st.floats(0, 50), min_size=len(ends), max_size=len(ends)))
        return ScoredTokens(ids, np.array(ends), np.array(bits), 0)

    return reading(), reading()


def by_a_loop(model: ScoredTokens, against: ScoredTokens) -> dict[str, tuple[int, float]]:
    """Class -> tokens of the model and excess, by the definition, token by token."""
    own, other = model.ends.tolist(), against.ends.tolist()
    common = [end for end in own if end in other]
    sums = dict.fromkeys(CLASSES, (0, 0.0))
    last_split = -100
    for begin, end in pairwise([0, *common]):
        mine = [index for index, stop in enumerate(own) if begin < stop <= end]
        theirs = [index for index, stop in enumerate(other) if begin < stop <= end]
        if len(mine) > len(theirs) or (len(mine) == len(theirs) and len(mine) > 1):
            name = "split"
        elif mine[0] - last_split <= AFTER:
            name = "after_split"
        else:
            name = "other"
        if name == "split":
            last_split = mine[-1]
        excess = sum(model.bits[mine].tolist()) - sum(against.bits[theirs].tolist())
        sums[name] = sums[name][0] + len(mine), sums[name][1] + excess
    return sums


@given(readings())
def test_any_two_segmentations(pair: tuple[ScoredTokens, ScoredTokens]) -> None:
    model, against = pair
    segments = align(model, against)
    # The segments are the text, and every token is in one of them.
    assert segments.begins.tolist() == [0, *segments.ends.tolist()[:-1]]
    assert segments.ends[-1] == model.ends[-1]
    parts = totals(segments)
    assert sum(part.tokens for part in parts) == len(model.ids)
    assert sum(part.against_tokens for part in parts) == len(against.ids)
    assert sum(part.n_bytes for part in parts) == model.ends[-1]
    assert sum(part.excess for part in parts) == pytest.approx(model.bits.sum() - against.bits.sum(), abs=1e-9)
    expected = by_a_loop(model, against)
    for part in parts:
        assert (part.tokens, part.excess) == (expected[part.name][0], pytest.approx(expected[part.name][1], abs=1e-9))
    words = split_words(segments, model, against, lambda i: i % 2 == 0)
    assert sum(word.excess for word in words) == pytest.approx(expected["split"][1], abs=1e-9)
    for word in words:  # each is a token of the other that the model cuts
        begin, end = divmod(word.token_id, 100)
        assert word.cuts and {end - cut for cut in word.cuts} == {e for e in model.ends.tolist() if begin < e < end}
