"""llama.cpp as a measuring instrument: one GGUF held open in a child process.

Keys and values are float32, flash attention is off and nothing is offloaded, so the logits of a float32 GGUF compare
with Transformers in float32. The model runs in a child (`exporters.engine_child`): where llama.cpp aborts,
`EngineCrashedError` is raised here.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compact.errors import ModelNotFoundError, UsageError
from exporters.native import ChildEngine, NativeChild
from exporters.pipe_messages import Array
from exporters.prefix_groups import Group, Score, ids_fit, pack, unpack_scores

# Rows of logits that are held at a time while scoring: 128 x 262,144 (Gemma) floats are 134 MB.
_DEFAULT_BATCH = 128


@dataclass(frozen=True)
class Generation:
    """A greedy continuation.

    Attributes:
        ids: the new token ids; where a stop id came, it is the last one.
        gaps: for each of `ids`, the logit of the first choice minus that of the second.
    """

    ids: list[int]
    gaps: list[float]


@dataclass(frozen=True)
class Speed:
    """A short run on the host.

    Attributes:
        prefill_tokens: length of the prompt.
        prefill_seconds: wall time for the prompt (the weights had been read before).
        decode_tokens: tokens fed one at a time after the prompt.
        decode_seconds: wall time for them.
        resident_bytes: resident memory of the child afterwards, mapped weights included.
    """

    prefill_tokens: int
    prefill_seconds: float
    decode_tokens: int
    decode_seconds: float
    resident_bytes: int


class LlamaEngine(ChildEngine):
    """One GGUF held open by llama.cpp; a context manager. Not for use from several threads.

    Attributes:
        n_vocab: number of tokens.
        metadata: the scalar key-value pairs of the GGUF as llama.cpp writes them as text; arrays are absent.
        add_bos: whether llama.cpp would put BOS before a text.
        bos: the id of BOS, -1 without one.
        eog: ids at which llama.cpp's own generation ends (EOS, EOT and the like).
    """

    n_vocab: int
    metadata: dict[str, str]
    add_bos: bool
    bos: int
    eog: tuple[int, ...]

    def __init__(
        self,
        path: Path,
        *,
        n_ctx: int = 512,
        n_batch: int | None = None,
        n_threads: int = 1,
        n_seq: int = 1,
        vocab_only: bool = False,
    ) -> None:
        """Open a GGUF.

        Args:
            path: the file.
            n_ctx: most tokens of a sequence.
            n_batch: tokens fed at a time, at most `n_ctx`; the default bounds the memory for logits.
            n_threads: threads of llama.cpp. More threads than free cores are very slow (they spin).
            n_seq: most sequences that `branches` scores at a time; they share the `n_ctx` cells of one cache.
            vocab_only: read the vocabulary only; `tokenize` and `detokenize` work.

        Raises:
            ModelNotFoundError: no such file.
            DamagedFileError: llama.cpp cannot load it.
            UnsupportedArchitectureError: llama.cpp does not know the architecture.
            ToolUnavailableError: llama-cpp-python is absent, or memory is short.
            EngineCrashedError: llama.cpp aborted.
        """
        if not path.is_file():
            raise ModelNotFoundError(f"no GGUF file at {path}")
        if n_ctx < 1 or n_threads < 1 or (n_batch is not None and not 1 <= n_batch <= n_ctx):
            raise UsageError(f"context of {n_ctx}, batch of {n_batch} and {n_threads} threads do not fit together")
        self._n_ctx = n_ctx
        self._n_seq = n_seq
        self._vocab_only = vocab_only
        self._name = path.name
        self._child = NativeChild("exporters.engine_child", path.name)
        try:
            description, _ = self._child.ask(
                {
                    "op": "open",
                    "path": os.fsencode(path.resolve()).hex(),  # a path need not be UTF-8
                    "n_ctx": n_ctx,
                    "n_batch": n_batch or min(n_ctx, _DEFAULT_BATCH),
                    "n_threads": n_threads,
                    "n_seq": n_seq,
                    "vocab_only": vocab_only,
                }
            )
        except BaseException:
            self._child.kill()
            raise
        self.n_vocab = description["n_vocab"]
        self.metadata = description["metadata"]
        self.add_bos = description["add_bos"]
        self.bos = description["bos"]
        self.eog = tuple(description["eog"])

    def tokenize(self, texts: Sequence[str], *, parse_special: bool) -> list[list[int]]:
        """Token ids of each text; never adds BOS or EOS.

        Args:
            texts: any strings. Lone surrogates become the invalid bytes that they stand for (`surrogateescape`), so
                text read from arbitrary bytes comes through; llama.cpp reads invalid bytes as U+FFFD.
            parse_special: whether the text of a special token becomes that token.

        Raises:
            EngineCrashedError: llama.cpp aborted.
        """
        raw = [encode_text(text) for text in texts]
        blob = np.frombuffer(b"".join(raw), dtype=np.uint8)
        lengths = np.array([len(text) for text in raw], dtype=np.int64)
        _, (flat, counts) = self._child.ask({"op": "tokenize", "parse_special": parse_special}, (blob, lengths))
        ends = np.cumsum(counts)
        return [flat[end - count : end].tolist() for end, count in zip(ends, counts, strict=True)]

    def detokenize(self, ids: Sequence[int], *, special: bool = True) -> bytes:
        """The bytes that the tokens stand for, one after another; special tokens as their text, or left out."""
        _, (text,) = self._child.ask({"op": "detokenize", "special": special}, (self._ids(ids, 0, 2**31 - 1),))
        return text.tobytes()

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits float32 [T, n_vocab] of a sequence of 1 to n_ctx ids, from an empty cache.

        Raises:
            UsageError: length or an id out of range, or the engine is `vocab_only`.
            EngineCrashedError: llama.cpp aborted.
        """
        _, (values,) = self._ask_model({"op": "logits"}, self._ids(ids, 1, self._n_ctx))
        return values

    def score(self, ids: Sequence[int]) -> NDArray[np.float64]:
        """Natural-log probability float64 [T-1] of ids[i+1] given ids[:i+1], for 2 to n_ctx ids.

        The logits stay in the child, one batch at a time. Raises as `logits`.
        """
        _, (values,) = self._ask_model({"op": "score"}, self._ids(ids, 2, self._n_ctx))
        return values

    def branches(self, groups: Sequence[Group]) -> list[list[list[Score]]]:
        """Scores of groups, which have at most n_ctx tokens and n_seq branches together; nothing is kept of them.

        Returns:
            By group, branch and row of targets.

        Raises as `logits`.
        """
        tokens, count = sum(group.n_tokens for group in groups), sum(len(group.branches) for group in groups)
        if tokens > self._n_ctx or count > self._n_seq:
            raise UsageError(
                f"{self._name}: {count} sequences of {tokens} tokens, {self._n_seq} of {self._n_ctx} fit here",
                "open the engine with a larger context",
            )
        if not ids_fit(groups, self.n_vocab):
            raise UsageError(f"{self._name}: token ids outside 0 to {self.n_vocab - 1}")
        lengths, ids = pack(groups)
        _, arrays = self._ask_model({"op": "branches", "lengths": lengths}, ids)
        return unpack_scores(groups, arrays)

    def generate(
        self, ids: Sequence[int], max_tokens: int, stop: Collection[int] = (), *, reuse: bool = False
    ) -> Generation:
        """Greedy continuation of `ids` by at most `max_tokens` (together at most n_ctx). Raises as `logits`.

        With `reuse`, what the last call left in the key-value cache is not computed again where `ids` begin alike.
        """
        if max_tokens < 1:
            raise UsageError(f"{max_tokens} tokens cannot be generated")
        prompt = self._ids(ids, 1, self._n_ctx - max_tokens)
        stops = sorted(int(token) for token in stop)
        request = {"op": "generate", "max_tokens": max_tokens, "stop": stops, "reuse": reuse}
        answer, _ = self._ask_model(request, prompt)
        return Generation(answer["ids"], answer["gaps"])

    def speed(self, prompt_ids: Sequence[int], n_decode: int) -> Speed:
        """Time a prompt and `n_decode` tokens after it (together at most n_ctx). Raises as `logits`."""
        if n_decode < 0:
            raise UsageError(f"{n_decode} tokens cannot be decoded")
        prompt = self._ids(prompt_ids, 1, self._n_ctx - n_decode)
        answer, _ = self._ask_model({"op": "speed", "n_decode": n_decode}, prompt)
        return Speed(
            len(prompt), answer["prefill_seconds"], n_decode, answer["decode_seconds"], resident_bytes(self._child.pid)
        )

    def _ids(self, ids: Sequence[int], least: int, most: int) -> NDArray[np.int32]:
        if not least <= len(ids) <= most:
            raise UsageError(
                f"{self._name}: a sequence of {len(ids)} tokens, {least} to {most} fit here",
                "open the engine with a larger context",
            )
        values = np.asarray(ids, dtype=np.int64)
        # llama.cpp reports a bad id only as "invalid input batch", and reads past the vocabulary elsewhere.
        if len(values) and (values.min() < 0 or values.max() >= self.n_vocab):
            raise UsageError(f"{self._name}: token ids outside 0 to {self.n_vocab - 1}")
        return values.astype(np.int32)

    def _ask_model(self, request: dict[str, Any], ids: Array) -> tuple[dict[str, Any], list[Array]]:
        if self._vocab_only:
            raise UsageError(f"{self._name}: the engine was opened for its vocabulary only")
        return self._child.ask(request, (ids,))


def kl_divergence(reference: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """Kullback-Leibler divergence in nats of each position, KL(reference || other).

    Args:
        reference: logits [T, V].
        other: logits [T, V].

    Returns:
        float64 [T].

    Raises:
        ValueError: the shapes differ.
    """
    if reference.shape != other.shape:
        raise ValueError(f"logits of shapes {reference.shape} and {other.shape}")
    out = np.empty(len(reference), dtype=np.float64)
    for index in range(len(reference)):
        left, right = _log_softmax(reference[index]), _log_softmax(other[index])
        out[index] = float((np.exp(left) * (left - right)).sum())
    return out


def resident_bytes(pid: int) -> int:
    """Resident memory of a process in bytes: RssAnon + RssFile of /proc on Linux, psutil's RSS elsewhere; 0 if gone."""
    status = Path(f"/proc/{pid}/status")
    try:
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return sum(int(fields[key].split()[0]) * 1024 for key in ("RssAnon", "RssFile"))
    except (OSError, KeyError):
        import psutil

        try:
            return int(psutil.Process(pid).memory_info().rss)
        except psutil.Error:
            return 0


def _log_softmax(row: NDArray[np.float32]) -> NDArray[np.float64]:
    values = row.astype(np.float64)
    values -= values.max()
    result: NDArray[np.float64] = values - np.log(np.exp(values).sum())
    return result


def encode_text(text: str) -> bytes:
    """UTF-8, a lone surrogate as the byte that it stands for (`surrogateescape`), or as its own three bytes."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        return text.encode("utf-8", "surrogatepass")
