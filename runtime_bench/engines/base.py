"""The interface of an engine. An engine loads a model in a fresh process, takes text, and times itself on the device.

Every engine runs one sequence at a time (batch size 1), chooses tokens greedily, and continues after the end of a text,
so that each run generates as many tokens as requested. No time includes tokenization.

`EngineKind` is an engine in the registry, `Engine` is that engine on a device, and `Session` is one process of it.
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
LOAD_SECONDS = 600.0  # time limit for loading a model
# Time limit of an engine's process. The device enforces it even without a connection. No process needs that long.
PROCESS_SECONDS = 4 * 3600.0
WARM_UP = "The quick brown fox jumps over the lazy dog."
WARM_UP_TOKENS = 8


@dataclass(frozen=True)
class Settings:
    """The settings for opening a model.

    Attributes:
        threads: number of threads, for the prompt and for single tokens.
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
    """Values that an engine reports after loading a model.

    Attributes:
        kv_cache_bytes: key-value cache of the context.
        buffers: bytes by backend and kind.
        device_memory_bytes: bytes of these buffers on an accelerator; None if there are none.
        settings: plain values: KV type, flash attention, mmap, mlock, backend.
        engine: plain values: version, build, ISA.
    """

    kv_cache_bytes: int | None = None
    buffers: Mapping[str, int] = field(default_factory=dict)
    device_memory_bytes: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    engine: Mapping[str, Any] = field(default_factory=dict)


class Session(Protocol):
    """One process of an engine with its model loaded.

    Attributes:
        pid: process id on the device.
        load_s: seconds from `Engine.times_load_from` until the model was ready.
        figures: values that the engine reported while loading.
        own_cpu_s: processor time that this program used while the engine worked.
        busy_s: time during which the engine worked.
    """

    pid: int
    load_s: float
    figures: Figures
    own_cpu_s: float
    busy_s: float

    def warm_up(self) -> None:
        """Run a short prompt without measuring it, so that all weights are read and the compute buffers exist."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of each text with the engine's own tokenizer, including BOS if the model needs one."""

    def generate(self, name: str, text: str, n_tokens: int, depth: int | None = None) -> Generation:
        """Run one prompt from an empty key-value cache and generate `n_tokens` tokens after it.

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
        name: its name in the registry.
        times_load_from: the event from which `load_s` is measured, for the report.
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
    """The device on which an engine will run, and the user's choices for it.

    Attributes:
        transport: the device, open.
        device: facts of the device.
        cache: the cache with the engines that were built on this machine.
        engine_dir: `--engine-dir`, a folder with the engine's program; None if not given.
        python: `--device-python`, a Python interpreter on the device; None if not given.
    """

    transport: Transport
    device: DeviceFacts
    cache: Cache
    engine_dir: Path | None = None
    python: str | None = None


class EngineKind(ABC):
    """An engine in the registry, before it is on a device.

    Attributes:
        name: its name for `--engine` and in reports.
        formats: the formats that it opens: `gguf`, `onnx`.
        options: the engine-specific options of the bench that this engine uses: `--engine-dir`, `--device-python`,
            `--gpu-layers`, `--execution-provider`.
        notes: notes for the report of every run on it, one line each.
        cache_grows: the key-value cache grows with the text, so the peak does not show the memory of a full context.
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
            context: the device, and the user's choices.
            named: the user named this engine. Otherwise, it is found only if it is likely to run on the device.

        Returns:
            A function that places the engine on the device; None if the engine is not available.

        Raises:
            CompactEdgeError: a file that the user gave for it is damaged, or is for another kind of device.
        """

    def missing(self, context: EngineContext) -> ToolUnavailableError:
        """Return the error for a user whose artifact needs this engine. Its hint says how to get the engine."""
        return ToolUnavailableError(
            f"{self.name} is not available for {context.transport.spec}", "name another engine with --engine"
        )
