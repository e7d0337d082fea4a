"""onnxruntime-genai: opens an ONNX folder, with its own tokenizer and generation loop."""

from __future__ import annotations

from runtime_bench.engines.agent import AgentKind
from runtime_bench.records import ONNX


class OnnxruntimeGenai(AgentKind):
    """See `AgentKind`. It allocates the key-value cache for the whole context at once."""

    name = "onnxruntime-genai"
    formats = (ONNX,)
    options = frozenset({"--device-python", "--execution-provider"})
    takes_folder = True


ENGINE = OnnxruntimeGenai()
