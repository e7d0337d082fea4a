"""Map each token of a text to the bytes that it covers, using the spelling of the tokens.

A token of byte-level BPE is spelled with one letter per byte. A SentencePiece-style token is text with marks for
spaces, or a byte token (`<0x0A>`). The first token of a text may begin with a mark for a space that is not in the text,
because the tokenizer adds one. Added tokens are spelled as they appear in text.

The offsets of the tokenizers library cannot be used: they count characters, so tokens that share a character have the
same offsets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compact.base.errors import DamagedFileError, DataError
from compact.base.files import read_json_object
from compact.vocabulary.sentencepiece_bpe import SPACE_MARK, is_byte_token
from compact.vocabulary.vocabulary import byte_alphabet, read_vocabulary

_BYTE_OF = {letter: byte for byte, letter in byte_alphabet().items()}


@dataclass(frozen=True)
class TokenPieces:
    """The tokens of a model, as its tokenizer spells them.

    Attributes:
        spelling: id -> token, as spelled in tokenizer.json.
        added: ids of the added tokens. Their spelling is their text.
        sentencepiece: True for SentencePiece-style BPE, False for byte-level BPE.
        where: the file's path, for messages.
    """

    spelling: Mapping[int, str]
    added: frozenset[int]
    sentencepiece: bool
    where: str

    def bytes_of(self, token_id: int) -> bytes:
        """Return the bytes that a token represents inside a text. Raises DamagedFileError if no token has the id."""
        token = self.spelling.get(token_id)
        if token is None:
            raise DamagedFileError(
                f"{self.where}: no token has id {token_id}", "use the tokenizer that belongs to this model"
            )
        if token_id not in self.added:
            if self.sentencepiece:
                return _sentencepiece_bytes(token)
            if all(letter in _BYTE_OF for letter in token):
                return bytes(_BYTE_OF[letter] for letter in token)
        return token.encode("utf-8", "surrogatepass")

    @cached_property
    def known(self) -> frozenset[bytes]:
        """The bytes of every token."""
        return frozenset(self.bytes_of(token_id) for token_id in self.spelling)

    def ends(self, ids: Sequence[int], text: str) -> NDArray[np.int64]:
        """Return where each token of a text ends.

        Args:
            ids: the ids of the whole text, without BOS.
            text: the text.

        Returns:
            int64 [tokens]: byte offsets into the text's UTF-8, ascending. The last one is the length of the text. A
            mark for a space that is not in the text covers no bytes, so a token may be empty.

        Raises:
            DataError: the tokens do not spell the text, because the tokenizer normalised it.
            DamagedFileError: no token has one of the ids.
        """
        data = text.encode("utf-8", "surrogatepass")
        # Possible end of the tokens so far -> the ends of all of them. There are several only while it is undecided
        # whether a leading mark is a space of the text or one that the tokenizer added.
        paths: dict[int, list[int]] = {0: []}
        after_start = True  # at the start of the text, or after an added token
        for token_id in ids:
            choices = self._choices(token_id, after_start)
            reached: dict[int, list[int]] = {}
            for begin, ends in paths.items():
                places = [begin + len(piece) for piece in choices if data.startswith(piece, begin)]
                for end in places:
                    if end not in reached:
                        reached[end] = ends if len(places) == 1 else list(ends)
                        reached[end].append(end)
            if not reached:
                raise self._changed(data, max(paths))
            paths = reached
            after_start = token_id in self.added
        if len(data) not in paths:
            raise self._changed(data, max(paths))
        return np.array(paths[len(data)], dtype=np.int64)

    def _choices(self, token_id: int, after_start: bool) -> list[bytes]:
        piece = self.bytes_of(token_id)
        if not self.sentencepiece:
            return [piece]
        token = self.spelling[token_id]
        if token_id in self.added:
            # llama.cpp searches for added tokens with spaces, the tokenizers library for added tokens with marks.
            return list(dict.fromkeys((piece, token.replace(SPACE_MARK, " ").encode("utf-8", "surrogatepass"))))
        return [piece, piece[1:]] if after_start and token.startswith(SPACE_MARK) else [piece]

    def _changed(self, data: bytes, at: int) -> DataError:
        shown = data[at : at + 24].decode("utf-8", "backslashreplace")
        return DataError(
            f"{self.where}: the tokens do not spell the text from byte {at} ({shown!r})",
            "this tokenizer normalises such text first; write it in Unicode NFC, or leave that part out",
        )


def _sentencepiece_bytes(token: str) -> bytes:
    if is_byte_token(token):
        return bytes([int(token[3:5], 16)])
    return token.replace(SPACE_MARK, " ").encode("utf-8", "surrogatepass")


def read_pieces(tokenizer_json: Path) -> TokenPieces:
    """Read the tokens of a tokenizer.json.

    Raises:
        UnsupportedTokenizerError: the tokenizer is neither byte-level nor SentencePiece-style BPE.
        DamagedFileError: the file is damaged.
        StorageError: the file cannot be read.
    """
    document: dict[str, Any] = read_json_object(tokenizer_json)
    vocabulary = read_vocabulary(document, 1 << 31, str(tokenizer_json))
    return TokenPieces(
        vocabulary.by_id, frozenset(vocabulary.added.values()), vocabulary.sentencepiece, str(tokenizer_json)
    )
