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
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from compact.distill.align import IntArray
from compact.distill.word_tree import WordTree

if TYPE_CHECKING:
    import torch

# Beginnings that are less likely are not drawn. All of them together have about a fiftieth of the mass.
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
    probabilities: np.ndarray[tuple[int], np.dtype[np.float64]]
    weight: float

    def weighing(self, weight: float) -> Lesson:
        return Lesson(self.at, self.pieces, self.next_pieces, self.probabilities, weight)


def lesson(tree: WordTree, sums: torch.Tensor, at: int, node: int, weight: float, most: int) -> Lesson:
    """Return the lesson of a node.

    Args:
        tree: the words.
        sums: float64 [W + 1], the cumulative sums of the position's distribution.
        at: position in the student's text.
        node: the node.
        weight: weight in the loss.
        most: largest number of next pieces. The least likely ones are left out.
    """
    children = slice(int(tree.child_offsets[node]), int(tree.child_offsets[node + 1]))
    values = sums.numpy()
    total = max(values[tree.end[node]] - values[tree.begin[node]], 1e-30)
    shares = (values[tree.child_end[children]] - values[tree.child_begin[children]]) / total
    order = np.argsort(-shares, kind="stable")[:most]
    return Lesson(at, tree.pieces[node], tree.child_pieces[children][order], shares[order].clip(0), weight)


@dataclass
class Draw:
    """Priority sampling of nodes from a stream of distributions (Duffield, Lund and Thorup 2007).

    A node is drawn with a probability that grows with `mass ** temper`. Its weight is its mass divided by this
    probability. So the sum of the weights is right on average, whatever `temper` is.

    Attributes:
        tree: the words.
        count: how many nodes to draw from all distributions together.
        temper: 1 draws by mass. 0 draws all alike.
        most: largest number of next pieces of a lesson.
        random: source of randomness.
    """

    tree: WordTree
    count: int
    temper: float
    most: int
    random: np.random.Generator

    def __post_init__(self) -> None:
        self._kept: list[tuple[float, float, Lesson]] = []  # priority, size, lesson that weighs its mass

    def offer(self, places: Sequence[int], sums: torch.Tensor) -> None:
        """Consider the nodes of some positions.

        Args:
            places: N positions in the student's text.
            sums: float64 [N, W + 1], their cumulative sums.
        """
        values = sums.numpy()
        mass = values[:, self.tree.end] - values[:, self.tree.ended]  # [N, nodes]
        rows, nodes = np.nonzero(mass > _LEAST)
        masses = mass[rows, nodes]
        sizes = masses**self.temper
        priorities = sizes / self.random.random(len(rows)).clip(1e-12)
        for n in np.argsort(-priorities)[: self.count + 1].tolist():
            row = int(rows[n])
            found = lesson(self.tree, sums[row], places[row], int(nodes[n]), float(masses[n]), self.most)
            self._kept.append((float(priorities[n]), float(sizes[n]), found))
        self._kept.sort(key=lambda entry: -entry[0])
        del self._kept[self.count + 1 :]

    def drawn(self) -> list[Lesson]:
        """Return the drawn lessons with their weights."""
        if len(self._kept) <= self.count:
            return [found for *_, found in self._kept]
        threshold = self._kept[-1][0]
        return [found.weighing(found.weight / min(1.0, size / threshold)) for _, size, found in self._kept[:-1]]


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
