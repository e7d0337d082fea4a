"""The tree of all words that a student writes in pieces, and the probabilities of their beginnings.

Sorted by their pieces, the words that begin with p1 ... pk are neighbours. So the probability of every beginning is a
difference of two cumulative sums over the teacher's distribution, for the whole vocabulary at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from compact.distill.align import Alignment, IntArray

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class WordTree:
    """The tree. A node is a sequence of pieces with which at least one longer word begins.

    Attributes:
        rows: int64 [W], columns of a distribution: the tokens whose first piece begins a longer word, sorted by their
            pieces.
        begin, ended, end: int64 [nodes]. `rows[begin:end]` begin with the node's pieces, and `rows[begin:ended]` are
            these pieces and nothing else.
        pieces: the pieces of each node, [nodes].
        parents: int64 [nodes], the node without the last piece; -1 for a single piece.
        child_offsets: int64 [nodes + 1]. The children of node n are `child_offsets[n] : child_offsets[n + 1]`.
        child_pieces, child_begin, child_end: int64 [children], next piece, and the rows that begin with it.
        words: int64 [words], the words of several pieces, as indices into `rows`.
        last_nodes: int64 [words], the node of each word without its last piece.
    """

    rows: IntArray
    begin: IntArray
    ended: IntArray
    end: IntArray
    pieces: list[tuple[int, ...]]
    parents: IntArray
    child_offsets: IntArray
    child_pieces: IntArray
    child_begin: IntArray
    child_end: IntArray
    words: IntArray
    last_nodes: IntArray

    def beginnings(self, word: int) -> list[int]:
        """Return the nodes on the way to a word, given its index in `words`, longest first."""
        found = [int(self.last_nodes[word])]
        while self.parents[found[-1]] >= 0:
            found.append(int(self.parents[found[-1]]))
        return found

    @cached_property
    def index(self) -> dict[tuple[int, ...], int]:
        """Pieces -> node."""
        return {pieces: n for n, pieces in enumerate(self.pieces)}

    def cumulative(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Return the cumulative sums over `rows`: float64 [N, W + 1], for probabilities [N, columns]."""
        import torch

        chosen = probabilities[:, torch.from_numpy(self.rows).to(probabilities.device)]
        return torch.nn.functional.pad(chosen.to(torch.float64).cumsum(1), (1, 0))


def word_tree(alignment: Alignment, columns: IntArray | None = None) -> WordTree:
    """Build the tree of a student's vocabulary.

    Args:
        alignment: the pieces of the teacher's tokens.
        columns: int64 [C], the teacher's token of each column of a distribution. None for all tokens, in order.
    """
    tokens = np.arange(len(alignment.first_piece)) if columns is None else columns
    words = {column: alignment.pieces(token) for column, token in enumerate(tokens.tolist())}
    beginnings = {pieces[0] for pieces in words.values() if len(pieces) > 1}
    chosen = sorted((pieces, row) for row, pieces in words.items() if pieces and pieces[0] in beginnings)
    pieces_of = [pieces for pieces, _ in chosen]
    ranges: list[tuple[int, int, int]] = []
    names: list[tuple[int, ...]] = []
    parents: list[int] = []
    children: list[list[tuple[int, int, int]]] = []
    todo = [(first, last, 1, -1) for _, first, last in _groups(pieces_of, 0, len(chosen), 0)]
    while todo:
        first, last, depth, parent = todo.pop()
        stop = first
        while stop < last and len(pieces_of[stop]) == depth:
            stop += 1
        if stop == last:  # no longer word begins so
            continue
        node = len(names)
        ranges.append((first, stop, last))
        names.append(pieces_of[first][:depth])
        parents.append(parent)
        found = _groups(pieces_of, stop, last, depth)
        children.append(found)
        todo += [(a, b, depth + 1, node) for _, a, b in found]
    flat = [child for found in children for child in found]
    by_node = np.array(ranges, dtype=np.int64).reshape(-1, 3)
    by_child = np.array(flat, dtype=np.int64).reshape(-1, 3)
    longer = [n for n, one in enumerate(pieces_of) if len(one) > 1]
    index = {pieces: n for n, pieces in enumerate(names)}
    return WordTree(
        rows=np.array([row for _, row in chosen], dtype=np.int64),
        begin=by_node[:, 0],
        ended=by_node[:, 1],
        end=by_node[:, 2],
        pieces=names,
        parents=np.array(parents, dtype=np.int64),
        child_offsets=np.concatenate([[0], np.cumsum([len(found) for found in children])]).astype(np.int64),
        child_pieces=by_child[:, 0],
        child_begin=by_child[:, 1],
        child_end=by_child[:, 2],
        words=np.array(longer, dtype=np.int64),
        last_nodes=np.array([index[pieces_of[n][:-1]] for n in longer], dtype=np.int64),
    )


def _groups(pieces: Sequence[tuple[int, ...]], first: int, last: int, depth: int) -> list[tuple[int, int, int]]:
    """Return (piece, begin, end) of the words [first, last) by their piece number `depth`."""
    found = []
    start = first
    for n in range(first, last):
        if n + 1 == last or pieces[n + 1][depth] != pieces[n][depth]:
            found.append((pieces[n][depth], start, n + 1))
            start = n + 1
    return found
