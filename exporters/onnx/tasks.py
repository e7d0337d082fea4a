"""Scores tasks with an ONNX folder in onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from exporters.native.prefix_groups import Group
from exporters.onnx.folder import read_folder
from exporters.onnx.ort_engine import OnnxEngine
from exporters.task_runtime import Advance, CheckpointTokenizer, Ended, GroupScores, generate_each, score_in_packs


class OnnxRuntime(CheckpointTokenizer):
    """See `exporters.task_runtime.Runtime`. Uses the folder's tokenizer.json."""

    name = "onnxruntime"

    def __init__(self, folder: Path, *, threads: int) -> None:
        """Open an ONNX folder.

        Raises:
            DataError: the tokenizer has neither BOS nor EOS.
            CompactEdgeError: as in `exporters.onnx.ort_engine.OnnxEngine`.
        """
        self.max_length = read_folder(folder).context_length
        super().__init__(folder)
        self._engine = OnnxEngine(folder, n_ctx=self.max_length, n_threads=threads)

    def close(self) -> None:
        """End the child process."""
        self._engine.close()

    def score(self, groups: Sequence[Group], advance: Advance) -> list[GroupScores]:
        """See `Runtime.score`."""
        # The graph takes one sequence at a time, so send one group per request.
        return score_in_packs(groups, self._engine.branches, advance, max_branches=1, max_tokens=1)

    def generate(
        self, prompts: Sequence[list[int]], max_tokens: int, ended: Ended, advance: Advance
    ) -> list[list[int]]:
        """See `Runtime.generate`."""
        stop = (*self._engine.eog, *self.ends)
        return generate_each(self._engine.generate, stop, prompts, max_tokens, ended, advance)
