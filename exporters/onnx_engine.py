"""onnxruntime as a measuring instrument: one ONNX folder held open in a child process.

The graph runs on onnxruntime's CPU provider, whatever provider genai_config.json asks for, with a key-value cache as on
a device. onnxruntime runs in a child (`exporters.onnx_engine_child`): where it aborts, `EngineCrashedError` is raised
here.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compact.errors import UsageError
from exporters.engine import Generation
from exporters.native import ChildEngine, NativeChild
from exporters.onnx_folder import read_folder
from exporters.prefix_groups import Group, Score, ids_fit, pack, unpack_scores

CRASH_HINT = "the files may not fit this onnxruntime, or memory ran out; try a smaller context"


class OnnxEngine(ChildEngine):
    """One ONNX folder held open by onnxruntime; a context manager. Not for use from several threads.

    Attributes:
        n_vocab: number of tokens: the width of the logits.
        context_length: most tokens of a sequence: `n_ctx`, or the model's own where that is less.
        bos: the id of BOS, -1 without one.
        eog: ids at which generation ends.
        execution_provider: what genai_config.json asks for (`cpu`, `cuda`, `dml`, ...); the CPU is used here.
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
            n_ctx: most tokens of a sequence.
            n_threads: threads of onnxruntime; they sleep while they wait.

        Raises:
            ModelNotFoundError: no folder, no graph or no genai_config.json.
            DamagedFileError: onnxruntime cannot load the graph, or genai_config.json is wrong.
            UnsafePathError: a file names another outside the folder.
            ToolUnavailableError: onnxruntime is absent, or memory is short.
            OperatorMissingError: the CPU provider lacks an operator of the graph.
            EngineCrashedError: onnxruntime aborted.
        """
        if n_ctx < 1 or n_threads < 1:
            raise UsageError(f"context of {n_ctx} and {n_threads} threads do not fit together")
        described = read_folder(folder)
        self._name = folder.name
        self.context_length = min(n_ctx, described.context_length)
        self.bos, self.eog = described.bos, described.eog
        self.execution_provider = described.execution_provider
        self._child = NativeChild("exporters.onnx_engine_child", folder.name, CRASH_HINT, library="onnxruntime")
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
        """Logits float32 [T, n_vocab] of a sequence of 1 to `context_length` ids, from an empty cache.

        Args:
            ids: the sequence.
            n_decode: so many of the last ids are fed one at a time, the ones before in chunks.

        Raises:
            UsageError: length, an id or `n_decode` out of range.
            DamagedFileError: onnxruntime loads the graph and cannot run it.
            EngineCrashedError: onnxruntime aborted.
        """
        if not 0 <= n_decode <= len(ids):
            raise UsageError(f"{self._name}: {n_decode} of {len(ids)} tokens cannot be fed one at a time")
        values: NDArray[np.float32]
        _, (values,) = self._ask({"op": "logits", "n_decode": n_decode}, ids, 1, self.context_length)
        return values

    def score(self, ids: Sequence[int]) -> NDArray[np.float64]:
        """Natural-log probability float64 [T-1] of ids[i+1] given ids[:i+1], for 2 to `context_length` ids.

        The logits stay in the child, one chunk at a time. Raises as `logits`.
        """
        values: NDArray[np.float64]
        _, (values,) = self._ask({"op": "score"}, ids, 2, self.context_length)
        return values

    def branches(self, groups: Sequence[Group]) -> list[list[list[Score]]]:
        """Scores of groups, of which each sequence fits into `context_length`. Raises as `logits`.

        Returns:
            By group, branch and row of targets.
        """
        longest = max((len(g.prefix) + len(b.ids) for g in groups for b in g.branches), default=0)
        if longest > self.context_length:
            raise UsageError(f"{self._name}: a sequence of {longest} tokens, at most {self.context_length} fit here")
        if not ids_fit(groups, self.n_vocab):
            raise UsageError(f"{self._name}: token ids outside 0 to {self.n_vocab - 1}")
        lengths, ids = pack(groups)
        _, arrays = self._child.ask({"op": "branches", "lengths": lengths}, (ids,))
        return unpack_scores(groups, arrays)

    def generate(
        self, ids: Sequence[int], max_tokens: int, stop: Collection[int] = (), *, reuse: bool = False
    ) -> Generation:
        """Continue greedily.

        Args:
            ids: the prompt.
            max_tokens: most new tokens, at least 1; prompt and continuation fit into `context_length`.
            stop: ids that end the continuation (`eog` for the model's own). None are used unasked.
            reuse: go on from the key-value cache of the last call, where `ids` begin with all that it holds.

        Raises as `logits`.
        """
        if max_tokens < 1:
            raise UsageError(f"{self._name}: max_tokens is {max_tokens}")
        stops = [int(token) for token in stop]
        request = {"op": "generate", "max_tokens": max_tokens, "stop": stops, "reuse": reuse}
        answer, _ = self._ask(request, ids, 1, self.context_length - max_tokens)
        return Generation(answer["ids"], answer["gaps"])

    def _ask(self, request: dict[str, Any], ids: Sequence[int], least: int, most: int) -> Any:
        return self._child.ask(request, (checked_ids(self._name, ids, least, most, self.n_vocab),))


def checked_ids(name: str, ids: Sequence[int], least: int, most: int, n_vocab: int) -> NDArray[np.int64]:
    """The ids as int64 [T]. Raises UsageError for a length outside `least` to `most` or an id without a row."""
    if not least <= len(ids) <= most:
        raise UsageError(
            f"{name}: a sequence of {len(ids)} tokens, {least} to {most} fit here",
            "open the engine with a larger context",
        )
    values = np.asarray(ids, dtype=np.int64)
    # onnxruntime wraps negative ids around, and genai reads past the vocabulary.
    if len(values) and (values.min() < 0 or values.max() >= n_vocab):
        raise UsageError(f"{name}: token ids outside 0 to {n_vocab - 1}")
    return values
