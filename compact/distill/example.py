"""Turn the teacher's answers on a text into training targets at the student's positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from compact.distill.align import Alignment
from compact.distill.loss import Targets
from compact.distill.teacher import Answers


@dataclass(frozen=True)
class Example:
    """One piece of text for the student.

    Attributes:
        ids: the student's ids, with BOS if its tokenizer adds one.
        positions: int64 [N], the positions that have a target, ascending.
        targets: the targets at these N positions.
    """

    ids: list[int]
    positions: torch.Tensor
    targets: Targets


def make_example(answers: Answers, student_ids: Sequence[int], alignment: Alignment, inner_weight: float) -> Example:
    """Map the teacher's answers to the student's vocabulary.

    At a boundary that both tokenizers share, the target is the teacher's distribution, with weight 1. Inside a token
    that the student does not have, the teacher gives no distribution. There, the target is the student's next token.

    Args:
        answers: the teacher's answers on the piece.
        student_ids: the piece, encoded by the student's tokenizer.
        alignment: the alignment of the two vocabularies.
        inner_weight: weight of the positions inside a token.
    """
    # If the teacher's text was truncated, truncate the student's text at the same place.
    end = int(alignment.teacher_lengths[answers.ids].sum())
    n_read = int(np.searchsorted(np.cumsum(alignment.student_lengths[np.asarray(student_ids)]), end, side="right"))
    ids = list(student_ids[: max(n_read, 1)])
    at, teacher_at = alignment.boundaries(answers.ids.tolist(), ids)
    pieces = torch.from_numpy(alignment.first_piece[answers.top_ids[teacher_at]])
    mass = torch.from_numpy(np.exp(answers.top_log_probs[teacher_at]))
    outer = _merged(pieces, mass)  # positions with the teacher's distribution
    inner = np.setdiff1d(np.arange(len(ids) - 1), at)  # positions inside a token of the teacher
    labels = torch.tensor([ids[n + 1] for n in inner], dtype=torch.int64)
    k = outer.ids.shape[1]
    q = torch.zeros(len(inner), k)
    valid = torch.zeros(len(inner), k, dtype=torch.bool)
    q[:, :1], valid[:, :1] = 1.0, True
    positions = torch.from_numpy(np.concatenate([at, inner]))
    order = positions.argsort()
    targets = Targets(
        torch.cat([outer.ids, labels[:, None].expand(-1, k)])[order],
        torch.cat([outer.q, q])[order],
        torch.cat([outer.valid, valid])[order],
        torch.cat([outer.weights, torch.full((len(inner),), inner_weight)])[order],
    )
    return Example(ids, positions[order], targets)


def _merged(pieces: torch.Tensor, mass: torch.Tensor) -> Targets:
    """Add up the mass of equal pieces in every row. This gives `q(s)` for the teacher's likeliest tokens.

    Args:
        pieces: int64 [N, k], the first piece of each token, or -1 if it has none. Then its mass goes to the tail.
        mass: float32 [N, k], the probability of each token.
    """
    pieces, order = pieces.sort(dim=1, descending=True)
    mass = mass.gather(1, order)
    is_new = torch.ones_like(pieces, dtype=torch.bool)
    is_new[:, 1:] = pieces[:, 1:] != pieces[:, :-1]
    slot = is_new.cumsum(1) - 1
    exists = pieces >= 0
    q = torch.zeros_like(mass).scatter_add_(1, slot, mass * exists)
    ids = torch.zeros_like(pieces).scatter_(1, slot, pieces.clamp_min(0))
    # The order is descending, so -1 comes last, and real pieces have the first slots.
    count = (is_new & exists).sum(1, keepdim=True)
    valid = torch.arange(pieces.shape[1])[None, :] < count
    ids = torch.where(valid, ids, ids[:, :1])
    return Targets(ids, torch.where(valid, q, 0), valid, (count[:, 0] > 0).float())
