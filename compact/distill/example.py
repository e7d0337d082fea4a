"""Turn the teacher's answers on a text into training targets at the student's positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from compact.distill.align import Alignment, IntArray
from compact.distill.branches import Draw, Lesson, layout, lessons
from compact.distill.loss import Targets, joined
from compact.distill.teacher import Answers
from compact.distill.word_tree import word_tree
from compact.pruning.recover_options import BRANCHES

# Number of next tokens in a target. The remaining probability is the tail.
TOP_K = 64
# Bytes of distributions that are in memory at once.
_CHUNK_BYTES = 1 << 28


@dataclass(frozen=True)
class Lessons:
    """How dropped words are taught.

    Attributes:
        branches: number of dropped words per text that are drawn for branches.
        positions: number of positions per text at which the branches may begin. A random choice of them costs less than
            all, and is right on average.
        temper: how much likelier words are preferred: 1 draws by probability, 0 draws all alike.
        inner_weight: weight of positions inside a word of the running text, if the teacher gives a distribution there.
            With 0, the target is the next token.
        label_weight: weight of positions inside a word whose target is the next token.
    """

    branches: int = BRANCHES
    positions: int = 32
    temper: float = 0.7
    inner_weight: float = 1.0
    label_weight: float = 0.3


@dataclass(frozen=True)
class Example:
    """One piece of text for the student, with branches.

    Attributes:
        ids: the student's ids of the text [T], with BOS if its tokenizer adds one, then those of the branches [B].
        positions: int64 [N], the positions that have a target.
        targets: the targets at these N positions.
        parents: int64 [B], the position that each branch position follows.
        position_ids: int64 [B], the position ids of the branch positions. Those of the text are 0 to T - 1.
    """

    ids: list[int]
    positions: torch.Tensor
    targets: Targets
    parents: IntArray
    position_ids: IntArray

    @property
    def n_text(self) -> int:
        return len(self.ids) - len(self.parents)


class ExampleMaker:
    """Makes examples for one student.

    Args:
        probabilities: maps the teacher's hidden states [N, hidden_size] to its distributions, float32 [N, C].
        alignment: the alignment of the two vocabularies.
        how: number and weights of the lessons in dropped words.
        n_rows: number of rows of the student's LM head.
        columns: int64 [C], the token of each column of the distributions. None for all tokens, in order.
    """

    def __init__(
        self,
        probabilities: Callable[[torch.Tensor], torch.Tensor],
        alignment: Alignment,
        how: Lessons,
        n_rows: int,
        columns: IntArray | None = None,
    ) -> None:
        self._probabilities, self._alignment, self._how, self._n_rows = probabilities, alignment, how, n_rows
        self._tree = word_tree(alignment, columns)
        first = alignment.first_piece if columns is None else alignment.first_piece[columns]
        self._per_chunk = max(1, _CHUNK_BYTES // (8 * len(first)))
        # Teacher's tokens that the student cannot write get a column after those of the LM head.
        self._first = torch.from_numpy(np.where(first >= 0, first, n_rows))

    def make(self, answers: Answers, student_ids: Sequence[int], seed: int) -> Example:
        """Map the teacher's answers to the student's vocabulary.

        At a boundary that both tokenizers share, the target is the teacher's distribution, with weight 1. Inside a
        token that the student does not have, and in branches, it is the distribution of the next piece.

        Args:
            answers: the teacher's answers on the piece.
            student_ids: the piece, encoded by the student's tokenizer.
            seed: seed of the draw of branches.
        """
        alignment, how = self._alignment, self._how
        # If the teacher's text was truncated, truncate the student's text at the same place.
        end = int(alignment.teacher_lengths[answers.ids].sum())
        ends = np.cumsum(alignment.student_lengths[np.asarray(student_ids)])
        ids = list(student_ids[: max(int(np.searchsorted(ends, end, side="right")), 1)])
        at, teacher_at = alignment.boundaries(answers.ids.tolist(), ids)
        inner = np.setdiff1d(np.arange(len(ids) - 1), at)  # positions inside a token of the teacher
        inside = self._inside(ids, inner, at)

        device = self._probabilities(torch.from_numpy(answers.states[:1])).device
        random = torch.Generator(device=device).manual_seed(seed)
        offered = _some(at, how.positions, random)
        draw = Draw(self._tree, how.branches, how.temper, TOP_K, random, scale=len(at) / max(len(offered), 1))
        in_text: list[Lesson] = []
        parts: list[Targets] = []
        for start in range(0, len(at), self._per_chunk):
            places = at[start : start + self._per_chunk]
            # [rows, C], on the teacher's device
            p = self._probabilities(torch.from_numpy(answers.states[teacher_at[start : start + self._per_chunk]]))
            parts.append(self._outer(p))
            if not self._tree.pieces:
                continue
            if how.branches:
                some = np.isin(places, offered)
                draw.offer(places[some], self._tree.cumulative(p[torch.from_numpy(some).to(p.device)]))
            some = np.isin(places, list(inside))
            rows, nodes = _nodes_at(places[some], inside)
            sums = self._tree.cumulative(p[torch.from_numpy(some).to(p.device)])
            weights = np.full(len(rows), how.inner_weight)
            in_text += lessons(self._tree, sums, rows, nodes, places=places[some], weights=weights, most=TOP_K)
        drawn = draw.drawn()
        placed = layout(len(ids), drawn)
        known = {one.at + len(one.pieces) for one in in_text}
        labelled = [n for n in inner.tolist() if n not in known]
        targets = [
            *(_Row([ids[n + 1]], [1.0], how.label_weight) for n in labelled),
            *(_Row(one.next_pieces.tolist(), one.probabilities.tolist(), one.weight) for one in (*in_text, *drawn)),
        ]
        positions = [*at.tolist(), *labelled, *(one.at + len(one.pieces) for one in in_text), *placed.taught]
        return Example(
            ids + placed.ids,
            torch.tensor(positions, dtype=torch.int64),
            joined([*parts, _stacked(targets)]),
            placed.parents,
            placed.position_ids,
        )

    def _inside(self, ids: Sequence[int], inner: IntArray, at: IntArray) -> dict[int, list[int]]:
        """Return the nodes of the words of the running text, by the boundary at which the word begins."""
        found: dict[int, list[int]] = {}
        for n in inner.tolist() if self._how.inner_weight else ():
            last = int(np.searchsorted(at, n)) - 1
            node = self._tree.index.get(tuple(ids[at[last] + 1 : n + 1])) if last >= 0 else None
            if node is not None:
                found.setdefault(int(at[last]), []).append(node)
        return found

    def _outer(self, p: torch.Tensor) -> Targets:
        """Return the targets of positions with a distribution [N, C]: the likeliest first pieces."""
        q = torch.zeros(len(p), self._n_rows + 1, device=p.device)
        q.index_add_(1, self._first.to(p.device), p)
        top, ids = (part.cpu() for part in q[:, :-1].topk(min(TOP_K, self._n_rows), dim=1))
        valid = top > 0
        ids = torch.where(valid, ids, ids[:, :1])
        return Targets(ids, top, valid, torch.ones(len(p)))


def _nodes_at(places: IntArray, inside: Mapping[int, Sequence[int]]) -> tuple[IntArray, IntArray]:
    """Return (rows of `places`, nodes), int64 [L] each, of the words that begin at these places."""
    pairs = [(row, node) for row, place in enumerate(places.tolist()) for node in inside.get(place, ())]
    found = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def _some(places: IntArray, count: int, random: torch.Generator) -> IntArray:
    """Return a random part of the places, int64 [count] or fewer."""
    order = torch.randperm(len(places), generator=random, device=random.device)[:count]
    chosen: IntArray = places[order.cpu().numpy()]
    return chosen


@dataclass(frozen=True)
class _Row:
    """One target: ids, their probabilities, and the weight of the row."""

    ids: list[int]
    q: list[float]
    weight: float


def _stacked(rows: Sequence[_Row]) -> Targets:
    """Return the rows as targets. Shorter rows are padded."""
    k = max((len(row.ids) for row in rows), default=1)
    ids, q = torch.zeros(len(rows), k, dtype=torch.int64), torch.zeros(len(rows), k)
    valid = torch.zeros(len(rows), k, dtype=torch.bool)
    for n, row in enumerate(rows):
        ids[n] = row.ids[0]
        ids[n, : len(row.ids)] = torch.tensor(row.ids)
        q[n, : len(row.ids)] = torch.tensor(row.q)
        valid[n, : len(row.ids)] = True
    return Targets(ids, q, valid, torch.tensor([row.weight for row in rows], dtype=torch.float32))
