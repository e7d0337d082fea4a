"""The teacher's answers: the unpruned model's last hidden states at every position of a text.

With the LM head, they give its distribution over the whole vocabulary. The answers on a piece of text depend only on
the piece and the model. They are cached per piece, so that later passes over a text, other orders of it, and other
pruned versions of the model can use them too.
"""

from __future__ import annotations

import contextlib
import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compact.architectures.layout import EMBEDDING, OUTPUT
from compact.base.cache import Cache
from compact.base.distributed import world_size
from compact.base.errors import StorageError
from compact.base.files import sha256_json
from compact.checkpoints.shards import open_tensors
from compact.distill.align import IntArray
from compact.distill.padding import padded_batch
from compact.sources.model_source import ModelSource
from compact.vocabulary.tokenizer import encode, load_tokenizer

if TYPE_CHECKING:
    import torch

KIND = "teacher"  # kind of the cache entries
# Increment when equal inputs give other answers.
_VERSION = 3
_FILE = "answers.npz"
# Store answers only while at least this much of the disk is free. They can be computed again, so they must not fill up
# the disk.
_LEFT_FREE = 4 << 30
# Number of positions per forward pass.
_POSITIONS = 2048


@dataclass(frozen=True)
class Answers:
    """The teacher's answers on one piece of text.

    Attributes:
        ids: int64 [T], the teacher's ids of the piece, with BOS if the tokenizer adds one.
        states: float32 [T, hidden_size], output of the last norm, with the precision of float16.
    """

    ids: IntArray
    states: np.ndarray[Any, np.dtype[np.float32]]


class Teacher:
    """The unpruned model. It is loaded when the first text is not in the cache. Its LM head is loaded in any case.

    Attributes:
        directory: directory of the model.
        key: what the answers depend on, apart from the text.

    Args:
        source: the model.
        cache: stores the answers while the disk has room.
        device, dtype: device and type of the model, already resolved (not `auto`).
        length: longest piece, in tokens. Longer pieces are truncated.
        left_free: bytes that must stay free on the disk.
        tokens: int64 [C], the tokens that `probabilities` considers. None for all.
    """

    def __init__(
        self,
        source: ModelSource,
        cache: Cache,
        *,
        device: str,
        dtype: torch.dtype,
        length: int,
        left_free: int = 0,
        tokens: IntArray | None = None,
    ) -> None:
        self._left_free, self._tokens = max(left_free, _LEFT_FREE), tokens
        self._source, self._cache, self._device, self._dtype = source, cache, device, dtype
        self._length = length
        self._tokenizer = load_tokenizer(source.directory)
        self.directory = source.directory
        self.key = {"version": _VERSION, "source": source.id, "dtype": str(dtype), "length": length}

    def answers(self, pieces: Sequence[str]) -> list[Answers]:
        """Return one `Answers` per piece, in order. All pieces that are not in the cache are computed together.

        In a group of processes, nothing is cached. Each process has other pieces, but all processes of a group must
        make the same calls to the cache.
        """
        if world_size() > 1:
            return self._answer(self._cut(pieces))
        keys = [sha256_json({**self.key, "piece": piece.encode("utf-8", "surrogatepass").hex()}) for piece in pieces]
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

    def score(self, ids: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the log-probabilities of ids[1:], float64 [tokens - 1] (`compact.forward.evaluate.Score`)."""
        from compact.forward.evaluate import hf_score

        return hf_score(self._model)(ids)

    def _cut(self, pieces: Sequence[str]) -> list[list[int]]:
        return [row[: self._length] for row in encode(self._tokenizer, pieces, add_special_tokens=True)]

    def probabilities(self, states: torch.Tensor) -> torch.Tensor:
        """Return the distributions, float32 [N, C] on the device, of hidden states [N, hidden_size]."""
        import torch

        from compact.distill.loss import head_logits

        head, (scale, cap) = self._head
        with torch.inference_mode():
            return head_logits(states.to(head.device, head.dtype), head, scale, cap).softmax(dim=-1)

    @cached_property
    def _head(self) -> tuple[torch.Tensor, tuple[float, float | None]]:
        """The rows of the LM head [C, hidden_size], and the settings of `head_settings`."""
        import torch
        from transformers import AutoConfig

        from compact.distill.loss import head_settings

        tensors = self._source.tensors
        with open_tensors(tensors) as read:
            weight = read(OUTPUT if OUTPUT in tensors else EMBEDDING)
        chosen = weight if self._tokens is None else weight[torch.from_numpy(self._tokens)]
        config = AutoConfig.from_pretrained(str(self._source.directory), local_files_only=True, trust_remote_code=False)
        return chosen.to(self._device, self._dtype), head_settings(config)

    @cached_property
    def _model(self) -> Any:
        from compact.forward.load import load_model, with_fast_attention

        return with_fast_attention(load_model(self._source.directory, device=self._device, dtype=self._dtype))

    def _answer(self, sequences: Sequence[Sequence[int]]) -> list[Answers]:
        import torch

        results: dict[int, Answers] = {}
        order = sorted(range(len(sequences)), key=lambda n: len(sequences[n]))
        size = max(1, _POSITIONS // max(map(len, sequences)))
        with torch.inference_mode():
            for start in range(0, len(order), size):
                group = order[start : start + size]
                batch = padded_batch([sequences[n] for n in group])
                states = self._model.model(input_ids=batch.to(self._device), use_cache=False).last_hidden_state
                # Round to float16 as the cache does, so that a run does not depend on what is in the cache.
                rounded = states.half().float().cpu().numpy()
                for row, n in enumerate(group):
                    length = len(sequences[n])
                    results[n] = Answers(np.asarray(sequences[n], dtype=np.int64), rounded[row, :length])
        return [results[n] for n in range(len(sequences))]


def _save(path: Path, answers: Answers) -> None:
    np.savez(path, ids=answers.ids.astype(np.uint32), states=answers.states.astype(np.float16))


def _load(path: Path) -> Answers:
    with np.load(path, allow_pickle=False) as data:
        return Answers(data["ids"].astype(np.int64), data["states"].astype(np.float32))
