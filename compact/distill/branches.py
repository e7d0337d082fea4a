"""Lessons in spelling: short branches from a text, one for every beginning of a dropped word.

A dropped token costs little where it is read and much where it is written: after its first piece, the model does not
know the next one. Running text has such a word at few positions. But the teacher's distribution at a position names
all the words that it would write there. Branches are drawn from it: sequences of pieces with which a dropped word
begins. The target after them is `q(s | p1 ... pk)` of `compact.distill.align`.

The branches are appended to the text, so that one forward pass teaches them all: each position of a branch sees the
text before it, its own ancestors, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from compact.distill.align import IntArray
from compact.distill.word_tree import WordTree

if TYPE_CHECKING:
    import torch

FloatArray = np.ndarray[Any, np.dtype[np.float64]]

# Words that are less likely are not drawn. All of them together have about a fiftieth of the mass.
_LEAST = 1e-6


@dataclass(frozen=True)
class Lesson:
    """A beginning of dropped words, at a position of a text.

    Attributes:
        at: position in the student's text after which the word begins.
        pieces: the pieces that have been written.
        next_pieces: int64 [c], the pieces that may follow, likeliest first.
        probabilities: float64 [c]. The rest belongs to words that end here.
        weight: weight in the loss.
    """

    at: int
    pieces: tuple[int, ...]
    next_pieces: IntArray
    probabilities: FloatArray
    weight: float


def lessons(
    tree: WordTree,
    sums: torch.Tensor,
    rows: IntArray,
    nodes: IntArray,
    *,
    places: IntArray,
    weights: FloatArray,
    most: int,
) -> list[Lesson]:
    """Return the lessons of some nodes.

    Args:
        tree: the words.
        sums: float64 [N, W + 1], the cumulative sums of N distributions, on any device.
        rows: int64 [L], the distribution of each lesson.
        nodes: int64 [L], its node.
        places: int64 [N], the position of each distribution in the student's text.
        weights: float64 [L], weights in the loss.
        most: largest number of next pieces. The least likely ones are left out.
    """
    import torch

    def at(row: IntArray, column: IntArray) -> FloatArray:
        device = sums.device
        found: FloatArray = sums[torch.from_numpy(row).to(device), torch.from_numpy(column).to(device)].cpu().numpy()
        return found

    first, last = tree.child_offsets[nodes], tree.child_offsets[nodes + 1]
    children = np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)] or [np.zeros(0, np.int64)])
    repeated = np.repeat(rows, last - first)
    mass = at(repeated, tree.child_end[children]) - at(repeated, tree.child_begin[children])
    totals = at(rows, tree.end[nodes]) - at(rows, tree.begin[nodes])
    ends = np.cumsum(last - first)
    made = []
    for n, (row, node) in enumerate(zip(rows.tolist(), nodes.tolist(), strict=True)):
        own = slice(int(ends[n - 1]) if n else 0, int(ends[n]))
        shares = (mass[own] / max(totals[n], 1e-30)).clip(0)
        order = np.argsort(-shares, kind="stable")[:most]
        pieces = tree.child_pieces[children[own]][order]
        made.append(Lesson(int(places[row]), tree.pieces[node], pieces, shares[order], float(weights[n])))
    return made


@dataclass
class Draw:
    """Priority sampling of dropped words from a stream of distributions (Duffield, Lund and Thorup 2007).

    A word is drawn with a probability that grows with `p ** temper`. Its weight is p divided by the probability of the
    draw. Each of its beginnings becomes a lesson of this weight, because one branch has all of them. Lessons that
    several words share get the sum of their weights. On average, a lesson's weight is therefore the probability of all
    words that go on after its pieces, whatever `temper` is.

    Attributes:
        tree: the words.
        count: how many words to draw from all distributions together.
        temper: 1 draws by probability. 0 draws all alike.
        most: largest number of next pieces of a lesson.
        random: source of randomness, on the device of the distributions.
        scale: factor for the weights, if the distributions are a part of all.
    """

    tree: WordTree
    count: int
    temper: float
    most: int
    random: torch.Generator
    scale: float = 1.0

    def __post_init__(self) -> None:
        self._kept: list[tuple[float, float, list[Lesson]]] = []  # priority, size, lessons that weigh p

    def offer(self, places: IntArray, sums: torch.Tensor) -> None:
        """Consider the words at some positions.

        Args:
            places: int64 [N], positions in the student's text.
            sums: float64 [N, W + 1], their cumulative sums.
        """
        import torch

        if not len(places):
            return
        words = torch.from_numpy(self.tree.words).to(sums.device)
        p = (sums[:, words + 1] - sums[:, words]).float()  # [N, words]
        sizes = torch.where(p > _LEAST, p.clamp_min(_LEAST).pow_(self.temper), 0)
        chances = torch.rand(p.shape, generator=self.random, device=p.device).clamp_min_(1e-9)
        top, where = (sizes / chances).flatten().topk(min(self.count + 1, p.numel()))
        chosen = where[top > 0]
        rows, drawn = (part.tolist() for part in (chosen // p.shape[1], chosen % p.shape[1]))
        weights = (self.scale * p.flatten()[chosen]).tolist()
        ways = [self.tree.beginnings(word) for word in drawn]
        found = iter(
            lessons(
                self.tree,
                sums,
                np.repeat(np.array(rows, dtype=np.int64), [len(way) for way in ways]),
                np.array([node for way in ways for node in way], dtype=np.int64),
                places=places,
                weights=np.repeat(np.array(weights, dtype=np.float64), [len(way) for way in ways]),
                most=self.most,
            )
        )
        entries = [
            (priority, size, list(islice(found, len(way))))
            for priority, size, way in zip(top.tolist(), sizes.flatten()[chosen].tolist(), ways, strict=False)
        ]
        self._kept = sorted([*self._kept, *entries], key=lambda entry: -entry[0])[: self.count + 1]

    def drawn(self) -> list[Lesson]:
        """Return the lessons of the drawn words, each beginning of a position once."""
        kept, threshold = self._kept, 0.0
        if len(kept) > self.count:
            kept, threshold = kept[:-1], kept[-1][0]
        found: dict[tuple[int, tuple[int, ...]], Lesson] = {}
        for _, size, own in kept:
            chance = min(1.0, size / threshold) if threshold else 1.0
            for one in own:
                earlier = found.get((one.at, one.pieces))
                weight = one.weight / chance + (0.0 if earlier is None else earlier.weight)
                found[one.at, one.pieces] = replace(one, weight=weight)
        return list(found.values())


@dataclass(frozen=True)
class Layout:
    """Branch positions of a text with T positions: B of them, each after its parent.

    Attributes:
        ids: the student's ids, [B].
        parents: int64 [B], indices of the whole sequence of T + B.
        position_ids: int64 [B].
        taught: index in the whole sequence of each lesson, in the order given.
    """

    ids: list[int]
    parents: IntArray
    position_ids: IntArray
    taught: list[int]


def layout(n_text: int, lessons: Sequence[Lesson]) -> Layout:
    """Lay out the lessons after a text of `n_text` tokens. Lessons with the same beginning share its positions."""
    index: dict[tuple[int, tuple[int, ...]], int] = {}
    ids: list[int] = []
    parents: list[int] = []
    positions: list[int] = []
    for one in sorted(lessons, key=lambda found: (found.at, found.pieces)):
        for depth in range(1, len(one.pieces) + 1):
            place = (one.at, one.pieces[:depth])
            if place in index:
                continue
            index[place] = n_text + len(ids)
            ids.append(place[1][-1])
            parents.append(index[one.at, place[1][:-1]] if depth > 1 else one.at)
            positions.append(one.at + depth)
    taught = [index[one.at, one.pieces] for one in lessons]
    return Layout(ids, np.array(parents, dtype=np.int64), np.array(positions, dtype=np.int64), taught)


def visible(n_text: int, parents: IntArray) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """Return which positions each position sees: bool [T + B, T + B].

    Args:
        n_text: T. The text is causal.
        parents: int64 [B], the parent of each branch position. It sees itself and what its parent sees.
    """
    length = n_text + len(parents)
    seen = np.zeros((length, length), dtype=np.bool_)
    seen[:n_text, :n_text] = np.tri(n_text, dtype=np.bool_)
    for n, parent in enumerate(parents.tolist(), start=n_text):
        seen[n] = seen[parent]
        seen[n, n] = True
    return seen
