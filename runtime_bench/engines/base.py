"""What the bench asks of an engine: a fresh process with a model in it, prompts as text, times of the device's clock.

Every engine runs one sequence at a time (batch size 1), chooses tokens greedily, and continues after the end of a text,
so that each run makes as many tokens as requested. No figure includes the time of tokenization.

`EngineKind` is an engine as the registry knows it, `Engine` is one on a device, `Session` is one process of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from compact.base.errors import ToolUnavailableError
from runtime_bench.records import Generation

if TYPE_CHECKING:
    from pathlib import Path

    from compact.base.cache import Cache
    from runtime_bench.bench_artifact import BenchArtifact
    from runtime_bench.device.facts import DeviceFacts
    from runtime_bench.transports.base import Transport

ALL_LAYERS = -1
LOAD_SECONDS = 600.0  # for one engine to load a model
# Time limit of an engine's process, kept by the device even without a connection. No process needs that long.
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
        """Run one prompt from an empty key-value cache and make `n_tokens` tokens after it.

        Raises:
            EngineCrashedError: the engine died; its last lines are quoted.
            LinkLostError: the connection broke.
        """


@dataclass(frozen=True)
class PlacedArtifact:
    """An artifact on a device.

    Attributes:
        folder: directory of its files on the device, absolute.
        artifact: the artifact as it was read on this machine.
    """

    folder: str
    artifact: BenchArtifact

    @property
    def path(self) -> str:
        """Path on the device of the file that most engines open: the GGUF's first part, or the graph."""
        return f"{self.folder}/{self.artifact.main}"

    @property
    def weights(self) -> tuple[str, ...]:
        """Paths on the device of the files with weights."""
        return tuple(f"{self.folder}/{name}" for name in self.artifact.weights)


class Engine(Protocol):
    """An engine on one device.

    Attributes:
        name: as in the registry.
        times_load_from: what `load_s` begins with, for the report.
        facts: plain values that are known before a model is loaded: build, files, sha256.
    """

    name: str
    times_load_from: str
    facts: Mapping[str, Any]

    def open(self, model: PlacedArtifact, settings: Settings) -> AbstractContextManager[Session]:
        """Start a fresh process that loads the artifact on the device; leaving the context ends the process.

        Raises:
            EngineCrashedError: the engine refuses the model or died; its last lines are quoted.
            DeviceUnavailableError: the engine cannot be started on the device.
        """


@dataclass(frozen=True)
class EngineContext:
    """Where an engine will run, and what the user said about it.

    Attributes:
        transport: the device, open.
        device: facts of the device.
        cache: where engines that were built here are kept.
        engine_dir: `--engine-dir`, a folder with a program of the engine; None without.
        python: `--device-python`, a Python interpreter on the device; None without.
    """

    transport: Transport
    device: DeviceFacts
    cache: Cache
    engine_dir: Path | None = None
    python: str | None = None


class EngineKind(ABC):
    """An engine in the registry, before it is on a device.

    Attributes:
        name: what `--engine` takes and reports say.
        formats: the formats that it opens: `gguf`, `onnx`.
        options: the options of the bench that only some engines use, and this one does: `--engine-dir`,
            `--device-python`, `--gpu-layers`, `--execution-provider`.
        notes: what a report must say about every run on it, one line each.
        cache_grows: the key-value cache grows with the text, so a peak shows nothing of the whole context.
    """

    name: str
    formats: tuple[str, ...]
    options: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    cache_grows: bool = False

    @abstractmethod
    def find(self, context: EngineContext, *, named: bool) -> Callable[[], Engine] | None:
        """Look for the engine.

        Args:
            context: where it will run.
            named: the user named this engine. Without that, an engine is found only where it can be expected to run.

        Returns:
            A function that places the engine on the device; None where the engine is not available.

        Raises:
            CompactEdgeError: what the user named for it is damaged or does not fit the device.
        """

    def missing(self, context: EngineContext) -> ToolUnavailableError:
        """The error for a user whose artifact needs this engine; its hint says how to get it."""
        return ToolUnavailableError(f"{self.name} is not available for {context.transport.spec}")
