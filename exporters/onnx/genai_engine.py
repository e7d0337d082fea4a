"""onnxruntime-genai as a device uses it: tokenizer, chat template and generation of one ONNX folder.

It runs in a child process (`exporters.onnx.genai_engine_child`). It always uses the CPU, whatever provider
genai_config.json names.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compact.base.errors import UsageError
from exporters.llamacpp.engine import Generation, Speed, encode_text, resident_bytes
from exporters.native.child import ChildEngine, NativeChild
from exporters.onnx.folder import GENAI_CONFIG, read_folder
from exporters.onnx.ort_engine import CRASH_HINT, checked_ids
from exporters.onnx.write import copy_tokenizer


class GenaiEngine(ChildEngine):
    """One ONNX folder that onnxruntime-genai keeps open. A context manager; not thread-safe.

    Attributes:
        n_vocab: number of tokens in genai_config.json.
        context_length: maximum tokens in a sequence: the smaller of `n_ctx` and the model's context length.
        eog: ids that end generation in genai.
        execution_provider: provider in genai_config.json (`cpu`, `cuda`, `dml`, ...). This class uses the CPU.
    """

    n_vocab: int
    context_length: int
    eog: tuple[int, ...]
    execution_provider: str

    def __init__(self, folder: Path, *, n_ctx: int = 512, n_threads: int = 1, vocab_only: bool = False) -> None:
        """Open a folder.

        Args:
            folder: model.onnx, its data, genai_config.json and the tokenizer's files.
            n_ctx: maximum tokens in a sequence. genai allocates its key-value cache for all of them at once.
            n_threads: threads of onnxruntime. They sleep while they wait.
            vocab_only: read only the tokenizer; no graph is needed. Only `tokenize`, `detokenize` and `chat_prompt`
                then work.

        Raises:
            ModelNotFoundError: the folder, the graph or genai_config.json does not exist.
            DamagedFileError: genai cannot load the graph or the tokenizer, or genai_config.json is invalid.
            UnsafePathError: a file refers to a file outside the folder.
            ToolUnavailableError: onnxruntime-genai is not installed, or there is not enough memory.
            OperatorMissingError: the CPU provider lacks an operator of the graph.
            EngineCrashedError: onnxruntime-genai aborted.
        """
        if n_ctx < 1 or n_threads < 1:
            raise UsageError(f"context {n_ctx} and {n_threads} threads are not a valid combination")
        described = read_folder(folder, vocab_only=vocab_only)
        self._name = folder.name
        self._vocab_only = vocab_only
        self._model_length = described.context_length
        self.n_vocab, self.eog = described.vocab_size, described.eog
        self.context_length = min(n_ctx, described.context_length)
        self.execution_provider = described.execution_provider
        self._child = NativeChild(
            "exporters.onnx.genai_engine_child", folder.name, CRASH_HINT, library="onnxruntime-genai"
        )
        try:
            self._child.ask(
                {
                    "op": "open",
                    "folder": os.fsencode(folder.absolute()).hex(),  # a path need not be UTF-8
                    "model": None if vocab_only else os.fsencode(described.model.absolute()).hex(),
                    "n_threads": n_threads,
                }
            )
        except BaseException:
            self._child.kill()
            raise

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenize each text without adding BOS or EOS.

        The text of a special token always becomes that token, because genai has no other mode. Lone surrogates become
        U+FFFD.

        Raises:
            DataError: genai refuses a text.
            EngineCrashedError: genai aborted.
        """
        raw = [encode_text(text) for text in texts]
        blob = np.frombuffer(b"".join(raw), dtype=np.uint8)
        lengths = np.array([len(text) for text in raw], dtype=np.int64)
        _, (flat, counts) = self._child.ask({"op": "tokenize"}, (blob, lengths))
        ends = np.cumsum(counts)
        return [flat[end - count : end].tolist() for end, count in zip(ends, counts, strict=True)]

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of the tokens without special tokens. Raises UsageError and the errors of `tokenize`."""
        answer, _ = self._child.ask({"op": "detokenize"}, (checked_ids(self._name, ids, 0, 2**31 - 1, self.n_vocab),))
        return str(answer["text"])

    def chat_prompt(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Render a conversation (`role`, `content`) with the folder's chat template and the prompt for the answer.

        Raises:
            DataError: genai's template engine refuses the template or the conversation.
            EngineCrashedError: genai aborted.
        """
        answer, _ = self._child.ask({"op": "chat", "messages": [dict(message) for message in messages]})
        return str(answer["text"])

    def generate(self, ids: Sequence[int], max_tokens: int, stop: Collection[int] = ()) -> Generation:
        """Continue greedily with genai's own loop, which also stops at the model's EOS (`eog`).

        Args:
            ids: the prompt.
            max_tokens: maximum new tokens, at least 1. Prompt and continuation must fit into `context_length`.
            stop: more ids that end the continuation.

        Raises:
            UsageError: a length or an id is out of range, or the engine is `vocab_only`.
            DamagedFileError: genai loads the graph but cannot run it.
            EngineCrashedError: genai aborted.
        """
        if max_tokens < 1:
            raise UsageError(f"{self._name}: max_tokens is {max_tokens}, but must be at least 1")
        prompt = self._ids(ids, self.context_length - max_tokens)
        request = {"op": "generate", "max_tokens": max_tokens, "stop": sorted(int(token) for token in stop)}
        answer, _ = self._child.ask({**request, "max_length": self.context_length}, (prompt,))
        return Generation(answer["ids"], answer["gaps"])

    def speed(self, prompt_ids: Sequence[int], n_decode: int) -> Speed:
        """Time a prompt and the decoding of `n_decode` tokens. Raises the same errors as `generate`.

        The total is at most `n_ctx`, and less than the model's context length, which must also hold the last new token.
        """
        if n_decode < 0:
            raise UsageError(f"{self._name}: n_decode is {n_decode}, but must not be negative")
        most = min(self.context_length, self._model_length - 1)
        prompt = self._ids(prompt_ids, most - n_decode)
        answer, _ = self._child.ask({"op": "speed", "n_decode": n_decode, "max_length": most + 1}, (prompt,))
        return Speed(
            len(prompt), answer["prefill_seconds"], n_decode, answer["decode_seconds"], resident_bytes(self.pid)
        )

    def _ids(self, ids: Sequence[int], most: int) -> NDArray[np.int64]:
        if self._vocab_only:
            raise UsageError(f"{self._name}: the engine was opened with vocab_only, so it cannot run the model")
        return checked_ids(self._name, ids, 1, most, self.n_vocab)


def write_vocabulary_folder(checkpoint: Path, artifact: Path, target: Path) -> Path:
    """Write a folder for `vocab_only`: a checkpoint's tokenizer, the artifact's genai_config.json. Return `target`."""
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(artifact / GENAI_CONFIG, target / GENAI_CONFIG)
    copy_tokenizer(checkpoint, target, read_folder(artifact, vocab_only=True).context_length)
    return target
