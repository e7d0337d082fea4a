"""Scores tasks with a GGUF in llama.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compact.base.errors import DataError
from compact.sources.from_gguf_tokenizer import PREFIX_KEY, prefix_token
from exporters.llamacpp.engine import LlamaEngine
from exporters.native.prefix_groups import Group
from exporters.task_runtime import BATCH_SIZE, Advance, Ended, GroupScores, generate_each, score_in_packs

# Maximum floats of logits in llama.cpp (134 MB), and maximum and minimum tokens per batch.
_LOGITS, _MAX_BATCH, _MIN_BATCH = 2**25, 512, 32


class GgufRuntime:
    """See `exporters.task_runtime.Runtime`. Uses llama.cpp's tokenizer, and float32 keys and values."""

    name = "llama.cpp"

    def __init__(self, path: Path, *, threads: int, batch_size: int = BATCH_SIZE, pre: str | None = None) -> None:
        """Open a GGUF. The context is created later, when the lengths of the sequences are known.

        `pre` is the pre-tokenizer to use instead of the file's own.

        Raises:
            DataError: the GGUF names neither BOS nor EOS.
            CompactEdgeError: as in `exporters.llamacpp.engine.LlamaEngine`.
        """
        self._path, self._threads, self._batch_size, self._pre = path, threads, batch_size, pre
        self._engine: LlamaEngine | None = None
        self._cells = 0
        self._vocabulary = LlamaEngine(path, vocab_only=True, pre=pre)
        try:
            metadata = self._vocabulary.metadata
            self.max_length = int(metadata[f"{metadata['general.architecture']}.context_length"])
            # Read the keys, because llama.cpp reports defaults if a file names no token.
            named = [metadata.get(f"tokenizer.ggml.{role}_token_id") for role in ("bos", "eos", "padding")]
            bos, eos, padding = (None if value is None else int(value) for value in named)
            token = prefix_token(bos, eos, padding, adds_bos=self._vocabulary.add_bos)
            if PREFIX_KEY in metadata:
                token = int(metadata[PREFIX_KEY])
            if token is None:
                raise DataError(f"{path.name}: the vocabulary has neither BOS nor EOS", "export the model again")
            self.prefix_token = token
            self._prefix_text = self._vocabulary.detokenize([token]).decode("utf-8", "replace")
        except BaseException:
            self._vocabulary.close()
            raise

    def close(self) -> None:
        """End the child processes."""
        self._vocabulary.close()
        if self._engine is not None:
            self._engine.close()

    def encode(self, text: str, *, special: bool | None = None) -> list[int]:
        """See `Runtime.encode`."""
        if special is None:
            special = not text.startswith(self._prefix_text)
        ids = self._vocabulary.tokenize([text], parse_special=True)[0]
        return [self._vocabulary.bos, *ids] if special and self._vocabulary.add_bos else ids

    def decode(self, ids: Sequence[int]) -> str:
        """See `Runtime.decode`."""
        text = self._vocabulary.detokenize(ids, special=False).decode("utf-8", "replace")
        return text.removeprefix(" ") if self._vocabulary.adds_space else text

    def _open(self, cells: int) -> LlamaEngine:
        """Return the engine with a cache of at least `cells` tokens."""
        if self._engine is None or cells > self._cells:
            if self._engine is not None:
                self._engine.close()
            self._cells = -(-cells // 256) * 256
            n_batch = max(_MIN_BATCH, min(_MAX_BATCH, _LOGITS // self._vocabulary.n_vocab, self._cells))
            self._engine = LlamaEngine(
                self._path,
                n_ctx=self._cells,
                n_batch=n_batch,
                n_threads=self._threads,
                n_seq=self._batch_size,
                pre=self._pre,
            )
        return self._engine

    def score(self, groups: Sequence[Group], advance: Advance) -> list[GroupScores]:
        """See `Runtime.score`."""
        # More cells would not be faster, because every token attends to all used cells.
        cells = max(_MAX_BATCH, *(group.n_tokens for group in groups))
        engine = self._open(cells)
        return score_in_packs(groups, engine.branches, advance, max_branches=self._batch_size, max_tokens=cells)

    def generate(
        self, prompts: Sequence[list[int]], max_tokens: int, ended: Ended, advance: Advance
    ) -> list[list[int]]:
        """See `Runtime.generate`."""
        engine = self._open(max(map(len, prompts)) + max_tokens)
        return generate_each(engine.generate, engine.eog, prompts, max_tokens, ended, advance)
