"""Held-out text during training: bits per byte of the pruned model, and how much more it needs than the unpruned one.

The difference is shown as a share of what the unpruned model needs. It is divided into words whose token was dropped,
which the pruned model writes in pieces, and everything else (`compact.forward.excess`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compact.base.cache import Cache
from compact.base.errors import DataError
from compact.base.files import read_json_object, sha256_json, write_json
from compact.checkpoints.names import TOKENIZER
from compact.distill.teacher import Teacher
from compact.forward.evaluate import Score, TextScorer, hf_score, token_bits, token_bytes
from compact.forward.excess import SPLIT, ScoredTokens, align, totals
from compact.vocabulary.token_pieces import read_pieces
from compact.vocabulary.tokenizer import bos_id, encode, load_tokenizer

_KIND = "held-out-bits"
_FILE = "bits.json"
# Increment when equal inputs give other values.
_VERSION = 1


@dataclass(frozen=True)
class Loss:
    """The loss of a model on a text.

    Attributes:
        bits_per_byte: bits per byte of the pruned model.
        unpruned: bits per byte of the unpruned model.
        split_words: share of the unpruned model's bits that words in pieces cost in addition; None if the tokens of
            this text cannot be compared.
    """

    bits_per_byte: float
    unpruned: float
    split_words: float | None

    @property
    def excess(self) -> float:
        """How much more the pruned model needs, as a share of the unpruned model's bits."""
        return self.bits_per_byte / self.unpruned - 1.0

    def __str__(self) -> str:
        parts = ""
        if self.split_words is not None:
            parts = f": split words {self.split_words:+.1%}, other {self.excess - self.split_words:+.1%}"
        return f"{self.bits_per_byte:.4f} ({self.excess:+.1%}{parts})"


def mean_excess(losses: Mapping[str, Loss]) -> float:
    """Return how much more the pruned model needs on all texts together: the mean of its bits per byte, compared."""
    return sum(loss.bits_per_byte for loss in losses.values()) / sum(loss.unpruned for loss in losses.values()) - 1.0


@dataclass(frozen=True)
class _Tokens:
    """A text as one model's tokenizer reads it.

    Attributes:
        ids: the token ids, [T].
        ends: int64 [T], where each token ends in the text; None if the tokenizer changes the text.
        n_bytes: UTF-8 bytes of the scored tokens.
        first: number of tokens at the start that are not scored: 1 without BOS, otherwise 0.
    """

    ids: Sequence[int]
    ends: NDArray[np.int64] | None
    n_bytes: int
    first: int

    def scored(self, bits: NDArray[np.float64]) -> ScoredTokens | None:
        return None if self.ends is None else ScoredTokens(self.ids, self.ends, bits, self.first)


class _Reader:
    """Reads and scores texts with the tokenizer of a checkpoint."""

    def __init__(self, directory: Path, window: int) -> None:
        self._tokenizer_json, self._tokenizer = directory / TOKENIZER, load_tokenizer(directory)
        self._pieces = read_pieces(self._tokenizer_json)
        self._bos, self._window = bos_id(self._tokenizer), window

    def _encode(self, text: str) -> list[int]:
        return encode(self._tokenizer, [text], add_special_tokens=False)[0]

    def read(self, text: str) -> _Tokens:
        ids = self._encode(text)
        first = 1 if self._bos is None else 0
        n_bytes = len(text.encode("utf-8", "surrogatepass"))
        n_bytes -= token_bytes(self._tokenizer_json, ids[0]) if first and ids else 0
        try:
            ends = self._pieces.ends(ids, text)
        except DataError:
            ends = None
        return _Tokens(ids, ends, n_bytes, first)

    def bits(self, tokens: _Tokens, score: Score) -> NDArray[np.float64]:
        """Return the bits of each token, float64 [T]. Raises CalibrationError for a text with fewer than two tokens."""
        return token_bits(TextScorer(self._encode, score, self._bos, self._window), tokens.ids)


class HeldOutTexts:
    """Texts that both models score, with windows of equal length in positions.

    Args:
        texts: name -> text.
        student: directory of the pruned checkpoint.
        teacher: the unpruned model. It scores the texts once, and the scores are cached.
        cache: stores the teacher's scores.
        window: positions per window, including BOS.
    """

    def __init__(self, texts: Mapping[str, str], student: Path, teacher: Teacher, cache: Cache, *, window: int) -> None:
        self._reader, unpruned = _Reader(student, window), _Reader(teacher.directory, window)
        self._texts = {name: self._reader.read(text) for name, text in texts.items()}
        self._unpruned = {name: unpruned.read(text) for name, text in texts.items()}
        named = {name: sha256_json(text.encode("utf-8", "surrogatepass").hex()) for name, text in texts.items()}
        key = sha256_json({"version": _VERSION, "teacher": teacher.key, "window": window, "texts": named})

        def make(work: Path) -> None:
            scored = {name: unpruned.bits(tokens, teacher.score).tolist() for name, tokens in self._unpruned.items()}
            write_json(work / _FILE, scored)

        scores = read_json_object(cache.get_or_make(_KIND, key, make) / _FILE)
        self._unpruned_bits = {name: np.array(scores[name]) for name in texts}

    def evaluate(self, model: Any) -> dict[str, Loss]:
        """Return the loss of the pruned model on every text."""
        score = hf_score(model)
        return {name: self._loss(name, self._reader.bits(tokens, score)) for name, tokens in self._texts.items()}

    def _loss(self, name: str, bits: NDArray[np.float64]) -> Loss:
        own, unpruned, unpruned_bits = self._texts[name], self._unpruned[name], self._unpruned_bits[name]
        split = None
        scored, against = own.scored(bits), unpruned.scored(unpruned_bits)
        if scored is not None and against is not None:
            parts = totals(align(scored, against))
            total = sum(part.against_bits for part in parts)
            split = next(part.excess for part in parts if part.name == SPLIT) / total if total else None
        return Loss(float(bits.sum()) / own.n_bytes, float(unpruned_bits.sum()) / unpruned.n_bytes, split)
