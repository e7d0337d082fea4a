"""What the bench asks of an engine: a fresh process with a model in it, prompts as text, times of the device's clock.

Every engine runs one sequence at a time (batch size 1: what edge means), greedily, and goes on behind the end of a
text, so that each run makes as many tokens as it was asked for. Tokenization is in no figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from runtime_bench.records import Generation

ALL_LAYERS = -1
LOAD_SECONDS = 600.0  # for one engine to load a model
# The device ends an engine's process after this, whatever became of the connection: longer than any one takes.
PROCESS_SECONDS = 4 * 3600.0
WARM_UP = "The quick brown fox jumps over the lazy dog."
WARM_UP_TOKENS = 8


@dataclass(frozen=True)
class Settings:
    """How a model is opened, the same for both sides.

    Attributes:
        threads: for the prompt and for single tokens.
        context: positions of the key-value cache.
        gpu_layers: layers on an accelerator; `ALL_LAYERS` for all, 0 for none (llama.cpp).
        execution_provider: `cpu`, `cuda`, `dml`, `webgpu` (onnxruntime).
    """

    threads: int
    context: int
    gpu_layers: int = 0
    execution_provider: str = "cpu"


@dataclass(frozen=True)
class Figures:
    """What an engine says of itself once a model is loaded.

    Attributes:
        kv_cache_bytes: key-value cache of the context.
        buffers: bytes by backend and kind.
        device_memory_bytes: of these on an accelerator; None where nothing is there.
        settings: plain values: KV type, flash attention, mmap, mlock, backend.
        engine: plain values: version, build, ISA.
    """

    kv_cache_bytes: int | None = None
    buffers: Mapping[str, int] = field(default_factory=dict)
    device_memory_bytes: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    engine: Mapping[str, Any] = field(default_factory=dict)


class Session(Protocol):
    """One process of the engine, the model loaded.

    Attributes:
        pid: process id on the device.
        load_s: seconds until the model was ready (see the engine for what they begin with).
        figures: what the engine said while it loaded.
        own_cpu_s: processor time that this program used while the engine worked.
        busy_s: time during which the engine worked.
    """

    pid: int
    load_s: float
    figures: Figures
    own_cpu_s: float
    busy_s: float

    def warm_up(self) -> None:
        """Run a short prompt that is in no figure: it touches every weight and makes the compute buffers."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens that the engine's own tokenizer needs for each text, BOS included where the model wants one."""

    def generate(self, name: str, text: str, n_tokens: int, depth: int | None = None) -> Generation:
        """Run one prompt from an empty key-value cache and make `n_tokens` tokens behind it.

        Raises:
            EngineCrashedError: the engine died; its last lines are quoted.
            LinkLostError: the connection broke.
        """


class Engine(Protocol):
    """An engine on one device.

    Attributes:
        name: `llama-server`, `llama-cpp-python`, `onnxruntime-genai`, `onnxruntime`.
        times_load_from: what `load_s` begins with, for the report.
    """

    name: str
    times_load_from: str

    def open(self, path: str, settings: Settings) -> AbstractContextManager[Session]:
        """Start a fresh process that loads the artifact at `path` on the device; leaving ends the process.

        Raises:
            EngineCrashedError: the engine refuses the model or died; its last lines are quoted.
            DeviceUnavailableError: the engine cannot be started on the device.
        """
