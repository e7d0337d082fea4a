"""Two tokenizers over one text: where their boundaries agree, and what the teacher's next token means to the student.

The student's vocabulary is a part of the teacher's, so every token of the teacher is a sequence of tokens of the
student. Where both segmentations end at the same place, the teacher's distribution over its next token t becomes one
over the student's next token s by *first kept piece*: `q(s) = sum of p(t) over all t whose segmentation by the student
begins with s`. Inside a token that only the teacher has, where the student has read the pieces r of it, the same
distribution says what may follow: `q(s | r) = sum of p(t) over all t that begin with r, s, over all that begin with r`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compact.sentencepiece_bpe import is_byte_token
from compact.vocabulary import Vocabulary

_NO_RANK = 1 << 62  # above every rank

IntArray = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Alignment:
    """What relates the teacher's ids to the student's.

    Attributes:
        first_piece: [teacher's rows] student's id of the first piece of every teacher's token; -1 for rows that are no
            token, and for dropped fillers, which no text spells.
        pieces: the student's ids of every token of the teacher that the student does not have, by its row.
        teacher_lengths, student_lengths: [rows] how much of the text a token stands for, in bytes of its spelling.
    """

    first_piece: IntArray
    pieces: Mapping[int, tuple[int, ...]]
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
    pieces: dict[int, tuple[int, ...]] = {}
    for row, token in vocabulary.by_id.items():
        # An added token is found in the text as it stands; any other one is spelled in the model's alphabet.
        is_model_token = vocabulary.tokens.get(token) == row and token not in vocabulary.added
        lengths[row] = _length(token, vocabulary) if is_model_token else len(token.encode())
        if row in new_id:
            first_piece[row] = new_id[row]
        elif is_model_token and (found := _pieces(token, ranks, vocabulary.tokens, new_id)):
            first_piece[row], pieces[row] = found[0], found
    return Alignment(first_piece, pieces, lengths, lengths[np.asarray(kept, dtype=np.int64)])


def _length(token: str, vocabulary: Vocabulary) -> int:
    # A token of byte-level BPE has a character a byte.
    if not vocabulary.sentencepiece:
        return len(token)
    return 1 if is_byte_token(token) else len(token.encode())


def _pieces(
    token: str, ranks: Mapping[tuple[str, str], int], tokens: Mapping[str, int], new_id: Mapping[int, int]
) -> tuple[int, ...]:
    """The student's ids of a token's spelling; empty where it cannot spell it."""
    found: list[int] = []
    for piece in segment(token, ranks):
        row = tokens.get(piece)
        # A character without a token is spelled in byte tokens.
        rows = [row] if row in new_id else [tokens.get(f"<0x{byte:02X}>") for byte in piece.encode()]
        if any(one is None or one not in new_id for one in rows):
            return ()
        found += [new_id[one] for one in rows if one is not None]
    return tuple(found)


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
