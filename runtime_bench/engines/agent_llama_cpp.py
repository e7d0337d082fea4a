"""llama-cpp-python: llama.cpp's library in a Python package."""

from __future__ import annotations

from importlib.util import find_spec

from runtime_bench.engines.agent import AgentKind
from runtime_bench.engines.base import EngineContext
from runtime_bench.records import GGUF


class LlamaCppPython(AgentKind):
    """See `AgentKind`."""

    name = "llama-cpp-python"
    formats = (GGUF,)
    options = frozenset({"--device-python", "--gpu-layers"})

    def is_default(self, context: EngineContext) -> bool:
        """Return true on this machine if the package is installed. Another device rarely has it."""
        return context.transport.spec == "local" and find_spec("llama_cpp") is not None


ENGINE = LlamaCppPython()
