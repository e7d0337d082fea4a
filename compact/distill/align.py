"""Align the teacher's and the student's tokens of one text, and map the teacher's next tokens to the student's.

The student's vocabulary is a subset of the teacher's, so every token of the teacher corresponds to a sequence of the
student's tokens. At a position where both tokenizers have a boundary, the teacher's distribution p over its next token
t becomes a distribution q over the student's next token s by the *first kept piece*:

    q(s) = sum of p(t) over all t whose segmentation by the student begins with s

After the first pieces p1 ... pk of a word, the same distribution p gives the next piece:

    q(s | p1 ... pk) = sum of p(t) over all t that begin p1 ... pk s, divided by the same sum over p1 ... pk
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
        piece_offsets, piece_ids: int64 [teacher's rows + 1] and [number of pieces]. The pieces of row r are
            `piece_ids[piece_offsets[r] : piece_offsets[r + 1]]`. A kept token has one piece.
    """

    first_piece: IntArray
    teacher_lengths: IntArray
    student_lengths: IntArray
    piece_offsets: IntArray
    piece_ids: IntArray

    def pieces(self, row: int) -> tuple[int, ...]:
        """Return the student's ids of all pieces of a teacher token. It is empty if the token has none."""
        return tuple(self.piece_ids[self.piece_offsets[row] : self.piece_offsets[row + 1]].tolist())

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
    pieces: list[list[int]] = [[] for _ in range(vocabulary.n_rows)]
    lengths = np.zeros(vocabulary.n_rows, dtype=np.int64)
    for row, token in vocabulary.by_id.items():
        # The tokenizer matches added tokens literally in the text. Other tokens are spelled in the model's alphabet.
        is_model_token = vocabulary.tokens.get(token) == row and token not in vocabulary.added
        lengths[row] = _length(token, vocabulary) if is_model_token else len(token.encode())
        if row in new_id:
            pieces[row] = [new_id[row]]
        elif is_model_token:
            pieces[row] = _pieces(token, ranks, vocabulary.tokens, new_id)
    first_piece = np.array([found[0] if found else -1 for found in pieces], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum([len(found) for found in pieces])]).astype(np.int64)
    flat = np.array([piece for found in pieces for piece in found], dtype=np.int64)
    return Alignment(first_piece, lengths, lengths[np.asarray(kept, dtype=np.int64)], offsets, flat)


def _length(token: str, vocabulary: Vocabulary) -> int:
    # In byte-level BPE, each character of a token represents one byte.
    if not vocabulary.sentencepiece:
        return len(token)
    return 1 if is_byte_token(token) else len(token.encode())


def _pieces(
    token: str, ranks: Mapping[tuple[str, str], int], tokens: Mapping[str, int], new_id: Mapping[int, int]
) -> list[int]:
    """Return the student's ids of a dropped token. Stop at a piece that the student cannot write."""
    found: list[int] = []
    for piece in segment(token, ranks):
        # SentencePiece writes an unknown character as its bytes.
        for spellings in ([piece], [f"<0x{byte:02X}>" for byte in piece.encode()]):
            rows = [tokens.get(spelling) for spelling in spellings]
            if all(row is not None and row in new_id for row in rows):
                found += [new_id[row] for row in rows if row is not None]
                break
        else:
            break
    return found


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
