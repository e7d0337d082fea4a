"""Two tokenizers over one text: where their boundaries agree, and what the teacher's next token means to the student.

The student's vocabulary is a part of the teacher's, so every token of the teacher is a sequence of tokens of the
student. Where both segmentations end at the same place, the teacher's distribution over its next token t becomes one
over the student's next token s by *first kept piece*: `q(s) = sum of p(t) over all t whose segmentation by the student
begins with s`.
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
    """What relates the teacher's ids to the student's.

    Attributes:
        first_piece: [teacher's rows] student's id of the first piece of every teacher's token; -1 for rows that are no
            token, and for dropped fillers, which no text spells.
        teacher_lengths, student_lengths: [rows] how much of the text a token stands for, in bytes of its spelling.
    """

    first_piece: IntArray
    teacher_lengths: IntArray
    student_lengths: IntArray

    def boundaries(self, teacher_ids: Sequence[int], student_ids: Sequence[int]) -> tuple[IntArray, IntArray]:
        """Positions (of the student, of the teacher) after which both have read the same part of the text, ascending.

        Args:
            teacher_ids, student_ids: one text by both tokenizers, both with or both without BOS.
        """
        teacher_ends = np.cumsum(self.teacher_lengths[np.asarray(teacher_ids, dtype=np.int64)])
        student_ends = np.cumsum(self.student_lengths[np.asarray(student_ids, dtype=np.int64)])
        # A token of no length (a row that is no token) would make an end occur twice; the last one has read the most.
        teacher_at = np.searchsorted(teacher_ends, student_ends, side="right") - 1
        agree = (teacher_at >= 0) & (teacher_ends[np.maximum(teacher_at, 0)] == student_ends)
        return np.nonzero(agree)[0], teacher_at[agree]


def align(vocabulary: Vocabulary, kept: Sequence[int]) -> Alignment:
    """Relate a vocabulary to the part of it that a plan keeps.

    Args:
        vocabulary: the source's.
        kept: `kept_token_ids` of the plan; new id i is the source's row `kept[i]`.
    """
    new_id = {old: new for new, old in enumerate(kept)}
    stays = {token for token, i in vocabulary.tokens.items() if i in new_id}
    ranks = {
        pair: rank
        for rank, pair in reversed(list(enumerate(vocabulary.merges)))
        if pair[0] in stays and pair[1] in stays and pair[0] + pair[1] in stays
    }
    first_piece = np.full(vocabulary.n_rows, -1, dtype=np.int64)
    lengths = np.zeros(vocabulary.n_rows, dtype=np.int64)
    for row, token in vocabulary.by_id.items():
        # An added token is found in the text as it stands; any other one is spelled in the model's alphabet.
        is_model_token = vocabulary.tokens.get(token) == row and token not in vocabulary.added
        lengths[row] = _length(token, vocabulary) if is_model_token else len(token.encode())
        if row in new_id:
            first_piece[row] = new_id[row]
        elif is_model_token and (piece := _first_piece(token, ranks, vocabulary.tokens, new_id)) is not None:
            first_piece[row] = piece
    return Alignment(first_piece, lengths, lengths[np.asarray(kept, dtype=np.int64)])


def _length(token: str, vocabulary: Vocabulary) -> int:
    # A token of byte-level BPE has a character a byte.
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
    """BPE on one token's spelling: the neighbours of the lowest rank are merged until none has a rank."""
    parts = list(token)
    none = _NO_RANK
    while len(parts) > 1:
        best, at = min((ranks.get((parts[n], parts[n + 1]), none), n) for n in range(len(parts) - 1))
        if best == none:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts
