"""Plain onnxruntime: opens the graph of an ONNX folder; this machine tokenizes for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runtime_bench.engines.agent import AgentKind, Tokenizer
from runtime_bench.records import ONNX

if TYPE_CHECKING:
    from runtime_bench.bench_artifact import BenchArtifact


class Onnxruntime(AgentKind):
    """See `AgentKind`. Its key-value cache is as long as the text."""

    name = "onnxruntime"
    formats = (ONNX,)
    options = frozenset({"--device-python", "--execution-provider"})
    notes = ("prompts were tokenized here, not on the device; no figure includes the time for it",)
    cache_grows = True

    def tokenizer_of(self, artifact: BenchArtifact) -> Tokenizer:
        """Return the tokenizer.json of the artifact's folder on this machine."""
        return _FolderTokenizer(artifact.path)


class _FolderTokenizer:
    """tokenizer.json of an ONNX folder."""

    def __init__(self, folder: Path) -> None:
        from compact.vocabulary.tokenizer import load_tokenizer

        self._tokenizer = load_tokenizer(folder)

    def encode(self, text: str) -> list[int]:
        from compact.vocabulary.tokenizer import encode

        return encode(self._tokenizer, [text], add_special_tokens=False)[0]

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text


ENGINE = Onnxruntime()
