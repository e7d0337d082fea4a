"""llama.cpp for measurements: keeps one GGUF open in a child process.

Keys and values are float32, flash attention is off and nothing is offloaded. The logits of a float32 GGUF can
therefore be compared with Transformers in float32. The model runs in a child (`exporters.llamacpp.engine_child`). If
llama.cpp aborts, this process raises `EngineCrashedError`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compact.base.errors import ModelNotFoundError, UsageError
from exporters.native.child import ChildEngine, NativeChild
from exporters.native.pipe_messages import Array
from exporters.native.prefix_groups import Group, Score, ids_fit, pack, unpack_scores

# Rows of logits in memory at a time while scoring. 128 x 262,144 floats (Gemma) take 134 MB.
_DEFAULT_BATCH = 128


@dataclass(frozen=True)
class Generation:
    """A greedy continuation.

    Attributes:
        ids: the new token ids. A stop id, if reached, is the last one.
        gaps: for each of `ids`, the highest logit minus the second highest.
    """

    ids: list[int]
    gaps: list[float]


@dataclass(frozen=True)
class Speed:
    """Times of a short run on the host.

    Attributes:
        prefill_tokens: length of the prompt.
        prefill_seconds: wall time for the prompt. The weights were read before.
        decode_tokens: tokens fed one at a time after the prompt.
        decode_seconds: wall time for `decode_tokens`.
        resident_bytes: resident memory of the child after the run, including mapped weights.
    """

    prefill_tokens: int
    prefill_seconds: float
    decode_tokens: int
    decode_seconds: float
    resident_bytes: int


class LlamaEngine(ChildEngine):
    """One GGUF that llama.cpp keeps open. A context manager; not thread-safe.

    Attributes:
        n_vocab: number of tokens.
        metadata: the scalar key-value pairs of the GGUF, as text from llama.cpp. Arrays are left out.
        add_bos: whether llama.cpp puts BOS before a text.
        bos: the id of BOS, or -1 if there is none.
        eog: ids that end generation in llama.cpp (EOS, EOT and similar).
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
            n_ctx: maximum tokens in a sequence.
            n_batch: tokens per batch, at most `n_ctx`. The default limits the memory for logits.
            n_threads: threads of llama.cpp. More threads than free cores are very slow, because they spin.
            n_seq: maximum sequences that `branches` scores at a time. They share the `n_ctx` cells of one cache.
            vocab_only: read only the vocabulary. Only `tokenize` and `detokenize` then work.

        Raises:
            ModelNotFoundError: the file does not exist.
            DamagedFileError: llama.cpp cannot load the file.
            UnsupportedArchitectureError: llama.cpp does not know the architecture.
            ToolUnavailableError: llama-cpp-python is not installed, or there is not enough memory.
            EngineCrashedError: llama.cpp aborted.
        """
        if not path.is_file():
            raise ModelNotFoundError(f"no GGUF file at {path}", "correct the path")
        if n_ctx < 1 or n_threads < 1 or (n_batch is not None and not 1 <= n_batch <= n_ctx):
            raise UsageError(f"context {n_ctx}, batch {n_batch} and {n_threads} threads are not a valid combination")
        self._n_ctx = n_ctx
        self._n_seq = n_seq
        self._vocab_only = vocab_only
        self._name = path.name
        self._child = NativeChild("exporters.llamacpp.engine_child", path.name)
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

    @property
    def adds_space(self) -> bool:
        """Whether llama.cpp puts a space before a text. Decoded text then starts with this space."""
        kind, prefix = (self.metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "add_space_prefix"))
        return kind == "llama" and prefix != "false"

    def tokenize(self, texts: Sequence[str], *, parse_special: bool) -> list[list[int]]:
        """Tokenize each text without adding BOS or EOS.

        Args:
            texts: any strings. Lone surrogates become the invalid bytes that they encode (`surrogateescape`), so
                text read from arbitrary bytes is preserved. llama.cpp reads invalid bytes as U+FFFD.
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
        """Return the concatenated bytes of the tokens. `special`: include special tokens as text."""
        _, (text,) = self._child.ask({"op": "detokenize", "special": special}, (self._ids(ids, 0, 2**31 - 1),))
        return text.tobytes()

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return logits, float32 [T, n_vocab], of a sequence of 1 to n_ctx ids, starting with an empty cache.

        Raises:
            UsageError: the length or an id is out of range, or the engine is `vocab_only`.
            EngineCrashedError: llama.cpp aborted.
        """
        _, (values,) = self._ask_model({"op": "logits"}, self._ids(ids, 1, self._n_ctx))
        return values

    def score(self, ids: Sequence[int]) -> NDArray[np.float64]:
        """Return the natural-log probability of ids[i+1] given ids[:i+1], float64 [T-1], for 2 to n_ctx ids.

        The logits stay in the child, one batch at a time. Raises the same errors as `logits`.
        """
        _, (values,) = self._ask_model({"op": "score"}, self._ids(ids, 2, self._n_ctx))
        return values

    def branches(self, groups: Sequence[Group]) -> list[list[list[Score]]]:
        """Score groups that have at most n_ctx tokens and n_seq branches in total. The cache is not reused afterwards.

        Returns:
            Scores by group, branch and row of targets.

        Raises the same errors as `logits`.
        """
        tokens, count = sum(group.n_tokens for group in groups), sum(len(group.branches) for group in groups)
        if tokens > self._n_ctx or count > self._n_seq:
            raise UsageError(
                f"{self._name}: {count} sequences, {tokens} tokens exceed the limits {self._n_seq}, {self._n_ctx}",
                "open the engine with a larger context",
            )
        if not ids_fit(groups, self.n_vocab):
            raise UsageError(f"{self._name}: a token id is not between 0 and {self.n_vocab - 1}")
        lengths, ids = pack(groups)
        _, arrays = self._ask_model({"op": "branches", "lengths": lengths}, ids)
        return unpack_scores(groups, arrays)

    def generate(
        self, ids: Sequence[int], max_tokens: int, stop: Collection[int] = (), *, reuse: bool = False
    ) -> Generation:
        """Continue `ids` greedily by at most `max_tokens`. The total is at most n_ctx. Raises the same as `logits`.

        With `reuse`, the prefix that `ids` shares with the last call comes from the key-value cache.
        """
        if max_tokens < 1:
            raise UsageError(f"max_tokens is {max_tokens}, but must be at least 1")
        prompt = self._ids(ids, 1, self._n_ctx - max_tokens)
        stops = sorted(int(token) for token in stop)
        request = {"op": "generate", "max_tokens": max_tokens, "stop": stops, "reuse": reuse}
        answer, _ = self._ask_model(request, prompt)
        return Generation(answer["ids"], answer["gaps"])

    def speed(self, prompt_ids: Sequence[int], n_decode: int) -> Speed:
        """Time a prompt and the decoding of `n_decode` tokens, at most n_ctx in total. Raises the same as `logits`."""
        if n_decode < 0:
            raise UsageError(f"n_decode is {n_decode}, but must not be negative")
        prompt = self._ids(prompt_ids, 1, self._n_ctx - n_decode)
        answer, _ = self._ask_model({"op": "speed", "n_decode": n_decode}, prompt)
        return Speed(
            len(prompt), answer["prefill_seconds"], n_decode, answer["decode_seconds"], resident_bytes(self._child.pid)
        )

    def _ids(self, ids: Sequence[int], least: int, most: int) -> NDArray[np.int32]:
        if not least <= len(ids) <= most:
            raise UsageError(
                f"{self._name}: a sequence has {len(ids)} tokens, but {least} to {most} are allowed",
                "open the engine with a larger context",
            )
        values = np.asarray(ids, dtype=np.int64)
        # For a bad id, llama.cpp reports only "invalid input batch", or reads past the end of the vocabulary.
        if len(values) and (values.min() < 0 or values.max() >= self.n_vocab):
            raise UsageError(f"{self._name}: a token id is not between 0 and {self.n_vocab - 1}")
        return values.astype(np.int32)

    def _ask_model(self, request: dict[str, Any], ids: Array) -> tuple[dict[str, Any], list[Array]]:
        if self._vocab_only:
            raise UsageError(f"{self._name}: the engine was opened with vocab_only, so it cannot run the model")
        return self._child.ask(request, (ids,))


def kl_divergence(reference: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the Kullback-Leibler divergence of each position in nats, KL(reference || other).

    Args:
        reference: logits [T, V].
        other: logits [T, V].

    Returns:
        float64 [T].

    Raises:
        ValueError: the shapes differ.
    """
    if reference.shape != other.shape:
        raise ValueError(f"logits have different shapes: {reference.shape} and {other.shape}")
    out = np.empty(len(reference), dtype=np.float64)
    for index in range(len(reference)):
        left, right = _log_softmax(reference[index]), _log_softmax(other[index])
        out[index] = float((np.exp(left) * (left - right)).sum())
    return out


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process in bytes; 0 if the process has ended.

    On Linux this is RssAnon + RssFile of /proc, elsewhere psutil's RSS.
    """
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
    """Encode as UTF-8. A lone surrogate becomes the byte it encodes (`surrogateescape`), or its own three bytes."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a surrogate that does not encode a byte
        return text.encode("utf-8", "surrogatepass")
