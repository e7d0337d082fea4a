"""Align the teacher's and the student's tokens of one text, and map the teacher's next tokens to the student's.

The student's vocabulary is a subset of the teacher's, so every token of the teacher corresponds to a sequence of the
student's tokens. At a position where both tokenizers have a boundary, the teacher's distribution p over its next token
t becomes a distribution q over the student's next token s by the *first kept piece*:

    q(s) = sum of p(t) over all t whose segmentation by the student begins with s
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compact.vocabulary.sentencepiece_bpe import is_byte_token
from compact.vocabulary.vocabulary import Vocabulary

_NO_RANK = 1 << 62  # above every rank

IntArray = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Alignment:
    """The mapping from the teacher's ids to the student's.

    Attributes:
        first_piece: int64 [teacher's rows], the student's id of the first piece of each teacher token. It is -1 for
            rows without a token, and for dropped tokens that no text contains.
        teacher_lengths: int64 [teacher's rows], length of the text that each token covers, in bytes of its spelling.
        student_lengths: int64 [student's rows], the same for the student.
    """

    first_piece: IntArray
    teacher_lengths: IntArray
    student_lengths: IntArray

    def boundaries(self, teacher_ids: Sequence[int], student_ids: Sequence[int]) -> tuple[IntArray, IntArray]:
        """Return the positions where both tokenizers have a boundary after the token.

        Args:
            teacher_ids, student_ids: the same text, encoded by both tokenizers, both with or both without BOS.

        Returns:
            Positions of the student and positions of the teacher, int64 [N] each, ascending. At these positions, both
            have read the same part of the text.
        """
        teacher_ends = np.cumsum(self.teacher_lengths[np.asarray(teacher_ids, dtype=np.int64)])
        student_ends = np.cumsum(self.student_lengths[np.asarray(student_ids, dtype=np.int64)])
        # Rows without a token have length 0, so an end may occur several times. Use the last occurrence.
        teacher_at = np.searchsorted(teacher_ends, student_ends, side="right") - 1
        shared = (teacher_at >= 0) & (teacher_ends[np.maximum(teacher_at, 0)] == student_ends)
        return np.nonzero(shared)[0], teacher_at[shared]


def align(vocabulary: Vocabulary, kept: Sequence[int]) -> Alignment:
    """Map a vocabulary to the part of it that a plan keeps.

    Args:
        vocabulary: the source's vocabulary.
        kept: `kept_token_ids` of the plan. New id i is the source's row `kept[i]`.
    """
    new_id = {old: new for new, old in enumerate(kept)}
    kept_tokens = {token for token, i in vocabulary.tokens.items() if i in new_id}
    ranks = {
        pair: rank
        for rank, pair in reversed(list(enumerate(vocabulary.merges)))
        if pair[0] in kept_tokens and pair[1] in kept_tokens and pair[0] + pair[1] in kept_tokens
    }
    first_piece = np.full(vocabulary.n_rows, -1, dtype=np.int64)
    lengths = np.zeros(vocabulary.n_rows, dtype=np.int64)
    for row, token in vocabulary.by_id.items():
        # The tokenizer matches added tokens literally in the text. Other tokens are spelled in the model's alphabet.
        is_model_token = vocabulary.tokens.get(token) == row and token not in vocabulary.added
        lengths[row] = _length(token, vocabulary) if is_model_token else len(token.encode())
        if row in new_id:
            first_piece[row] = new_id[row]
        elif is_model_token and (piece := _first_piece(token, ranks, vocabulary.tokens, new_id)) is not None:
            first_piece[row] = piece
    return Alignment(first_piece, lengths, lengths[np.asarray(kept, dtype=np.int64)])


def _length(token: str, vocabulary: Vocabulary) -> int:
    # In byte-level BPE, each character of a token represents one byte.
    if not vocabulary.sentencepiece:
        return len(token)
    return 1 if is_byte_token(token) else len(token.encode())


def _first_piece(
    token: str, ranks: Mapping[tuple[str, str], int], tokens: Mapping[str, int], new_id: Mapping[int, int]
) -> int | None:
    piece = segment(token, ranks)[0]
    spellings = [piece, f"<0x{piece.encode()[0]:02X}>"]
    for spelling in spellings:
        row = tokens.get(spelling)
        if row is not None and row in new_id:
            return new_id[row]
    return None


def segment(token: str, ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """Split a token's spelling by BPE: merge the pair of neighbours with the lowest rank until no pair has a rank."""
    parts = list(token)
    none = _NO_RANK
    while len(parts) > 1:
        best, at = min((ranks.get((parts[n], parts[n + 1]), none), n) for n in range(len(parts) - 1))
        if best == none:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts
