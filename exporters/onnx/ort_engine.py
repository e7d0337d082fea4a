"""onnxruntime for measurements: keeps one ONNX folder open in a child process.

The graph runs on onnxruntime's CPU provider, whatever provider genai_config.json names. It uses a key-value cache, as
on a device. onnxruntime runs in a child (`exporters.onnx.ort_engine_child`). If it aborts, this process raises
`EngineCrashedError`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compact.base.errors import UsageError
from exporters.llamacpp.engine import Generation
from exporters.native.child import ChildEngine, NativeChild
from exporters.native.prefix_groups import Group, Score, ids_fit, pack, unpack_scores
from exporters.onnx.folder import read_folder

CRASH_HINT = "the files may not work with this version of onnxruntime, or memory ran out; try a smaller context"


class OnnxEngine(ChildEngine):
    """One ONNX folder that onnxruntime keeps open. A context manager; not thread-safe.

    Attributes:
        n_vocab: number of tokens, which is the width of the logits.
        context_length: maximum tokens in a sequence: the smaller of `n_ctx` and the model's context length.
        bos: the id of BOS, or -1 if there is none.
        eog: ids that end generation.
        execution_provider: provider in genai_config.json (`cpu`, `cuda`, `dml`, ...). This class uses the CPU.
    """

    n_vocab: int
    context_length: int
    bos: int
    eog: tuple[int, ...]
    execution_provider: str

    def __init__(self, folder: Path, *, n_ctx: int = 512, n_threads: int = 1) -> None:
        """Open a folder.

        Args:
            folder: model.onnx, its data and genai_config.json.
            n_ctx: maximum tokens in a sequence.
            n_threads: threads of onnxruntime. They sleep while they wait.

        Raises:
            ModelNotFoundError: the folder, the graph or genai_config.json does not exist.
            DamagedFileError: onnxruntime cannot load the graph, or genai_config.json is invalid.
            UnsafePathError: a file refers to a file outside the folder.
            ToolUnavailableError: onnxruntime is not installed, or there is not enough memory.
            OperatorMissingError: the CPU provider lacks an operator of the graph.
            EngineCrashedError: onnxruntime aborted.
        """
        if n_ctx < 1 or n_threads < 1:
            raise UsageError(f"context {n_ctx} and {n_threads} threads are not a valid combination")
        described = read_folder(folder)
        self._name = folder.name
        self.context_length = min(n_ctx, described.context_length)
        self.bos, self.eog = described.bos, described.eog
        self.execution_provider = described.execution_provider
        self._child = NativeChild("exporters.onnx.ort_engine_child", folder.name, CRASH_HINT, library="onnxruntime")
        try:
            description, _ = self._child.ask(
                {
                    "op": "open",
                    "path": os.fsencode(described.model.absolute()).hex(),  # a path need not be UTF-8
                    "n_threads": n_threads,
                    "vocab_size": described.vocab_size,
                    "cache": [described.cache_heads, described.head_size],
                }
            )
        except BaseException:
            self._child.kill()
            raise
        self.n_vocab = description["n_vocab"]

    def logits(self, ids: Sequence[int], n_decode: int = 0) -> NDArray[np.float32]:
        """Return logits, float32 [T, n_vocab], of 1 to `context_length` ids, starting with an empty cache.

        Args:
            ids: the sequence.
            n_decode: number of ids at the end that are processed one at a time. The others are processed in chunks.

        Raises:
            UsageError: the length, an id or `n_decode` is out of range.
            DamagedFileError: onnxruntime loads the graph but cannot run it.
            EngineCrashedError: onnxruntime aborted.
        """
        if not 0 <= n_decode <= len(ids):
            raise UsageError(f"{self._name}: cannot decode {n_decode} of {len(ids)} tokens one at a time")
        values: NDArray[np.float32]
        _, (values,) = self._ask({"op": "logits", "n_decode": n_decode}, ids, 1, self.context_length)
        return values

    def score(self, ids: Sequence[int]) -> NDArray[np.float64]:
        """Return the natural-log probability of ids[i+1] given ids[:i+1], float64 [T-1], for 2 to `context_length` ids.

        The logits stay in the child, one chunk at a time. Raises the same errors as `logits`.
        """
        values: NDArray[np.float64]
        _, (values,) = self._ask({"op": "score"}, ids, 2, self.context_length)
        return values

    def branches(self, groups: Sequence[Group]) -> list[list[list[Score]]]:
        """Score groups. Each sequence must fit into `context_length`. Raises the same errors as `logits`.

        Returns:
            Scores by group, branch and row of targets.
        """
        longest = max((len(g.prefix) + len(b.ids) for g in groups for b in g.branches), default=0)
        if longest > self.context_length:
            raise UsageError(
                f"{self._name}: a sequence has {longest} tokens, but at most {self.context_length} are allowed"
            )
        if not ids_fit(groups, self.n_vocab):
            raise UsageError(f"{self._name}: a token id is not between 0 and {self.n_vocab - 1}")
        lengths, ids = pack(groups)
        _, arrays = self._child.ask({"op": "branches", "lengths": lengths}, (ids,))
        return unpack_scores(groups, arrays)

    def generate(
        self, ids: Sequence[int], max_tokens: int, stop: Collection[int] = (), *, reuse: bool = False
    ) -> Generation:
        """Continue greedily.

        Args:
            ids: the prompt.
            max_tokens: maximum new tokens, at least 1. Prompt and continuation must fit into `context_length`.
            stop: ids that end the continuation. Pass `eog` for the model's end tokens; there is no default.
            reuse: continue from the key-value cache of the last call if `ids` start with all of its ids.

        Raises the same errors as `logits`.
        """
        if max_tokens < 1:
            raise UsageError(f"{self._name}: max_tokens is {max_tokens}, but must be at least 1")
        stops = [int(token) for token in stop]
        request = {"op": "generate", "max_tokens": max_tokens, "stop": stops, "reuse": reuse}
        answer, _ = self._ask(request, ids, 1, self.context_length - max_tokens)
        return Generation(answer["ids"], answer["gaps"])

    def _ask(self, request: dict[str, Any], ids: Sequence[int], least: int, most: int) -> Any:
        return self._child.ask(request, (checked_ids(self._name, ids, least, most, self.n_vocab),))


def checked_ids(name: str, ids: Sequence[int], least: int, most: int, n_vocab: int) -> NDArray[np.int64]:
    """Return the ids as int64 [T]. Raises UsageError if the length or an id is out of range."""
    if not least <= len(ids) <= most:
        raise UsageError(
            f"{name}: a sequence has {len(ids)} tokens, but {least} to {most} are allowed",
            "open the engine with a larger context",
        )
    values = np.asarray(ids, dtype=np.int64)
    # onnxruntime counts negative ids from the end, and genai reads past the end of the vocabulary.
    if len(values) and (values.min() < 0 or values.max() >= n_vocab):
        raise UsageError(f"{name}: a token id is not between 0 and {n_vocab - 1}")
    return values
