"""From the teacher's answers on a text to what the student should say at each of its own positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from compact.recovery.align import Alignment, IntArray
from compact.recovery.loss import Targets
from compact.recovery.teacher import Answers


@dataclass(frozen=True)
class Lesson:
    """One piece of text for the student.

    Attributes:
        ids: the student's ids, BOS included where its tokenizer puts one.
        positions: [N] the positions that have a target, ascending.
        targets: of these N positions.
    """

    ids: list[int]
    positions: torch.Tensor
    targets: Targets


def make_lesson(answers: Answers, student_ids: Sequence[int], alignment: Alignment, inner_weight: float) -> Lesson:
    """Project the teacher's answers on the student's vocabulary.

    Args:
        answers: the teacher's, on the piece.
        student_ids: the piece by the student's tokenizer.
        alignment: of the two vocabularies.
        inner_weight: weight of the cross-entropy at positions inside a token that the student does not have, where
            none of the teacher's answers begins like the text; a position with a distribution weighs 1.
    """
    # What the teacher's text was cut to, the student does not read either.
    end = int(alignment.teacher_lengths[answers.ids].sum())
    n_read = int(np.searchsorted(np.cumsum(alignment.student_lengths[np.asarray(student_ids)]), end, side="right"))
    ids = list(student_ids[: max(n_read, 1)])
    at, teacher_at = alignment.boundaries(answers.ids.tolist(), ids)
    pieces = torch.from_numpy(alignment.first_piece[answers.top_ids[teacher_at]])
    mass = torch.from_numpy(np.exp(answers.top_log_probs[teacher_at]))
    outer = _merged(pieces, mass)
    inner = np.setdiff1d(np.arange(len(ids) - 1), at)
    inside = _inside(inner, at, teacher_at, ids, answers, alignment, inner_weight)
    positions = torch.from_numpy(np.concatenate([at, inner]))
    order = positions.argsort()
    targets = Targets(
        torch.cat([outer.ids, inside.ids])[order],
        torch.cat([outer.q, inside.q])[order],
        torch.cat([outer.valid, inside.valid])[order],
        torch.cat([outer.weights, inside.weights])[order],
    )
    return Lesson(ids, positions[order], targets)


def _inside(
    inner: IntArray,
    at: IntArray,
    teacher_at: IntArray,
    ids: Sequence[int],
    answers: Answers,
    alignment: Alignment,
    inner_weight: float,
) -> Targets:
    """What follows inside tokens that the student does not have.

    The teacher's answers at the boundary before count that begin with the pieces read since: those that go on give
    their next piece, those that end there go to the tail. Where there is none, the text's own next token is the target.
    """
    k = answers.top_ids.shape[1]
    n = len(inner)
    table = Targets(
        torch.zeros(n, k, dtype=torch.int64),
        torch.zeros(n, k),
        torch.zeros(n, k, dtype=torch.bool),
        torch.full((n,), inner_weight),
    )
    for row, position in enumerate(inner.tolist()):
        before = int(np.searchsorted(at, position)) - 1
        masses: dict[int, float] = {}
        total = 0.0
        if before >= 0:
            read = tuple(ids[int(at[before]) + 1 : position + 1])
            boundary = int(teacher_at[before])
            top = answers.top_ids[boundary]
            for column in np.nonzero(alignment.first_piece[top] == read[0])[0]:
                pieces = alignment.pieces.get(int(top[column]), read[:1])
                if pieces[: len(read)] != read:
                    continue
                mass = float(np.exp(answers.top_log_probs[boundary, column]))
                total += mass
                if len(pieces) > len(read):
                    masses[pieces[len(read)]] = masses.get(pieces[len(read)], 0.0) + mass
        if masses:
            table.weights[row] = 1.0
        else:
            masses, total = {ids[position + 1]: 1.0}, 1.0
        count = len(masses)
        table.ids[row, :count] = torch.tensor(list(masses))
        table.ids[row, count:] = table.ids[row, 0]
        table.q[row, :count] = torch.tensor([mass / total for mass in masses.values()])
        table.valid[row, :count] = True
    return table


def _merged(pieces: torch.Tensor, mass: torch.Tensor) -> Targets:
    """Add up the mass of equal pieces in every row: `q(s)` of the teacher's likeliest tokens.

    Args:
        pieces: int64 [N, k], -1 where a token has no piece (its mass goes to the tail).
        mass: [N, k].
    """
    pieces, order = pieces.sort(dim=1, descending=True)
    mass = mass.gather(1, order)
    fresh = torch.ones_like(pieces, dtype=torch.bool)
    fresh[:, 1:] = pieces[:, 1:] != pieces[:, :-1]
    slot = fresh.cumsum(1) - 1
    there = pieces >= 0
    q = torch.zeros_like(mass).scatter_add_(1, slot, mass * there)
    ids = torch.zeros_like(pieces).scatter_(1, slot, pieces.clamp_min(0))
    # The -1 come last, so the slots of real pieces are the first ones.
    count = (fresh & there).sum(1, keepdim=True)
    valid = torch.arange(pieces.shape[1])[None, :] < count
    ids = torch.where(valid, ids, ids[:, :1])
    return Targets(ids, torch.where(valid, q, 0), valid, (count[:, 0] > 0).float())
