"""The teacher's answers: the unpruned model's likeliest next tokens at every position of a text.

The answers on a piece of text depend only on the piece and the model. They are cached per piece, so that later passes
over a text, other orders of it, and other pruned versions of the model can use them too.
"""

from __future__ import annotations

import contextlib
import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compact.base.cache import Cache
from compact.base.distributed import world_size
from compact.base.errors import StorageError
from compact.base.files import sha256_json
from compact.distill.align import IntArray
from compact.distill.padding import padded_batch, padded_length
from compact.vocabulary.tokenizer import encode, load_tokenizer

if TYPE_CHECKING:
    import torch

# Number of next tokens to store per position. The remaining probability mass is the tail.
TOP_K = 64
KIND = "teacher"  # kind of the cache entries
# Increment when equal inputs give other answers.
_VERSION = 1
_FILE = "answers.npz"
# Store answers only while at least this much of the disk is free. They can be computed again, so they must not fill up
# the disk.
_LEFT_FREE = 4 << 30
# Bytes of logits that are in memory at once, and number of positions per forward pass.
_LOGITS_BYTES = 1 << 28
_POSITIONS = 2048


@dataclass(frozen=True)
class Answers:
    """The teacher's answers on one piece of text.

    Attributes:
        ids: int64 [T], the teacher's ids of the piece, with BOS if the tokenizer adds one.
        top_ids: int64 [T, k], the likeliest tokens. Row i is about the token that follows position i.
        top_log_probs: float32 [T, k], their log-probabilities, descending, with the precision of float16.
    """

    ids: IntArray
    top_ids: IntArray
    top_log_probs: np.ndarray[Any, np.dtype[np.float32]]


class Teacher:
    """The unpruned model. It is loaded when the first text is not in the cache.

    Args:
        directory: directory of its checkpoint.
        source_id: id of the model in cache keys.
        cache: stores the answers while the disk has room.
        device, dtype: device and type of the model, already resolved (not `auto`).
        length: longest piece, in tokens. Longer pieces are truncated.
        left_free: bytes that must stay free on the disk.
    """

    def __init__(
        self,
        directory: Path,
        source_id: str,
        cache: Cache,
        *,
        device: str,
        dtype: torch.dtype,
        length: int,
        left_free: int = 0,
    ) -> None:
        self._left_free = max(left_free, _LEFT_FREE)
        self._directory, self._cache, self._device, self._dtype = directory, cache, device, dtype
        self._length = length
        self._tokenizer = load_tokenizer(directory)
        self._model: Any = None
        self._key = {"version": _VERSION, "source": source_id, "dtype": str(dtype), "k": TOP_K, "length": length}

    def answers(self, pieces: Sequence[str]) -> list[Answers]:
        """Return one `Answers` per piece, in order. All pieces that are not in the cache are computed together.

        In a group of processes, nothing is cached. Each process has other pieces, but all processes of a group must
        make the same calls to the cache.
        """
        if world_size() > 1:
            return self._answer(self._cut(pieces))
        keys = [sha256_json({**self._key, "piece": piece.encode("utf-8", "surrogatepass").hex()}) for piece in pieces]
        by_key = dict(zip(keys, pieces, strict=True))
        found = {key: answers for key in by_key if (answers := self._find(key)) is not None}
        missing = [key for key in by_key if key not in found]
        if missing:
            made = self._answer(self._cut([by_key[key] for key in missing]))
            for key, answers in zip(missing, made, strict=True):
                found[key] = answers
                self._keep(key, answers)
        return [found[key] for key in keys]

    def _find(self, key: str) -> Answers | None:
        """Return the cached answers, or None if they are missing or damaged. They can be computed again."""
        entry = self._cache.find(KIND, key)
        if entry is None:
            return None
        with contextlib.suppress(OSError):  # the cache may be read-only
            os.utime(entry)  # record the last use, because unused entries are deleted
        try:
            return _load(entry / _FILE)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):
            return None

    def _keep(self, key: str, answers: Answers) -> None:
        def make(work: Path) -> None:
            _save(work / _FILE, answers)

        # Training must not stop because the cache is full or read-only.
        with contextlib.suppress(StorageError):
            self._cache.get_or_make(KIND, key, make, needed_bytes=self._left_free, replace=True)

    def _cut(self, pieces: Sequence[str]) -> list[list[int]]:
        return [row[: self._length] for row in encode(self._tokenizer, pieces, add_special_tokens=True)]

    def _answer(self, sequences: Sequence[Sequence[int]]) -> list[Answers]:
        import torch

        from compact.forward.load import load_model

        if self._model is None:
            self._model = load_model(self._directory, device=self._device, dtype=self._dtype)
        results: dict[int, Answers] = {}
        order = sorted(range(len(sequences)), key=lambda n: len(sequences[n]))
        size = max(1, _POSITIONS // max(map(len, sequences)))
        with torch.inference_mode():
            for start in range(0, len(order), size):
                group = order[start : start + size]
                batch = padded_batch([sequences[n] for n in group])
                states = self._model.model(input_ids=batch.to(self._device), use_cache=False).last_hidden_state
                for row, n in enumerate(group):
                    results[n] = self._likeliest(sequences[n], states[row, : padded_length(len(sequences[n]))])
        return [results[n] for n in range(len(sequences))]

    def _likeliest(self, sequence: Sequence[int], states: torch.Tensor) -> Answers:
        """Compute the answers of one text from its hidden states, a few rows of logits at a time.

        Args:
            sequence: the T token ids of the text.
            states: hidden states [padded T, hidden_size].
        """
        from compact.distill.loss import head_logits, head_settings

        head = self._model.get_output_embeddings().weight
        scale, cap = head_settings(self._model.config)
        k, rows = min(TOP_K, head.shape[0]), max(1, _LOGITS_BYTES // (4 * head.shape[0]))
        ids = np.empty((len(states), k), dtype=np.int64)
        log_probs = np.empty((len(states), k), dtype=np.float32)
        for start in range(0, len(states), rows):
            logits = head_logits(states[start : start + rows], head, scale, cap)  # [rows, vocab_size]
            top, chosen = logits.topk(k, dim=-1)
            ids[start : start + rows] = chosen.cpu().numpy()
            log_probs[start : start + rows] = (top - logits.logsumexp(dim=-1, keepdim=True)).cpu().numpy()
        end = len(sequence)
        # Round to float16 as the cache does, so that a run does not depend on what is in the cache.
        return Answers(
            np.asarray(sequence, dtype=np.int64), ids[:end], log_probs[:end].astype(np.float16).astype(np.float32)
        )


def _save(path: Path, answers: Answers) -> None:
    np.savez(
        path,
        ids=answers.ids.astype(np.uint32),
        top_ids=answers.top_ids.astype(np.uint16 if answers.top_ids.max() < 1 << 16 else np.uint32),
        top_log_probs=answers.top_log_probs.astype(np.float16),
    )


def _load(path: Path) -> Answers:
    with np.load(path, allow_pickle=False) as data:
        ids, top_ids, log_probs = (data[name] for name in ("ids", "top_ids", "top_log_probs"))
    return Answers(ids.astype(np.int64), top_ids.astype(np.int64), log_probs.astype(np.float32))
