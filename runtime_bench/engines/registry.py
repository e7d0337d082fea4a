"""The engines of the bench, and the choice of an engine for an artifact.

A new engine is one module with an `ENGINE` (`runtime_bench.engines.base.EngineKind`) and one line of `ENGINES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from compact.base.errors import ToolUnavailableError, UsageError

if TYPE_CHECKING:
    from runtime_bench.bench_artifact import BenchArtifact
    from runtime_bench.engines.base import Engine, EngineContext, EngineKind
    from runtime_bench.records import Side

# Name -> module. If the user names no engine, the first one that opens the format and is available is used.
# The modules are imported on use: `--help` reads the names only.
ENGINES: dict[str, str] = {
    "llama-server": "runtime_bench.engines.llama_server",
    "llama-cpp-python": "runtime_bench.engines.agent_llama_cpp",
    "onnxruntime-genai": "runtime_bench.engines.agent_genai",
    "onnxruntime": "runtime_bench.engines.agent_onnxruntime",
}


@dataclass(frozen=True)
class ChosenEngine:
    """An engine that was found, not yet on the device.

    Attributes:
        kind: its entry in the registry.
        place: places it on the device. Raises DeviceUnavailableError if the device cannot run it.
    """

    kind: EngineKind
    place: Callable[[], Engine]


def engine_kind(name: str) -> EngineKind:
    """Return the engine of that name. Raises KeyError for an unknown name."""
    kind: EngineKind = import_module(ENGINES[name]).ENGINE
    return kind


def engines_for(artifact_format: str) -> list[EngineKind]:
    """Return the engines that open artifacts of a format (`gguf`, `onnx`), the preferred one first."""
    return [kind for kind in map(engine_kind, ENGINES) if artifact_format in kind.formats]


def choose_engines(
    artifacts: Mapping[Side, BenchArtifact], named: str | None, context: EngineContext
) -> dict[Side, ChosenEngine]:
    """Choose an engine for each side. Two artifacts of one format get the same engine.

    Args:
        artifacts: both sides.
        named: the engine that the user named, or None. If the formats differ, it is used for the one that it opens.
        context: the device, and the user's choices.

    Raises:
        UsageError: the named engine does not open the artifact.
        ToolUnavailableError: no engine for it is available; the hint says how to get one.
    """
    by_format = {artifact.format: artifact for artifact in artifacts.values()}
    chosen: dict[str, ChosenEngine] = {}
    for artifact_format, artifact in by_format.items():
        opens = any(kind.name == named for kind in engines_for(artifact_format))
        wanted = named if opens or len(by_format) == 1 else None
        chosen[artifact_format] = _choose(artifact, wanted, context)
    return {side: chosen[artifact.format] for side, artifact in artifacts.items()}


def _choose(artifact: BenchArtifact, named: str | None, context: EngineContext) -> ChosenEngine:
    kinds = engines_for(artifact.format)
    if named is not None:
        able = [kind.name for kind in kinds]
        if named not in able:
            raise UsageError(f"--engine {named} does not open {artifact.name}", f"use --engine {' or '.join(able)}")
        kinds = [kind for kind in kinds if kind.name == named]
    for kind in kinds:
        place = kind.find(context, named=named is not None)
        if place is not None:
            return ChosenEngine(kind, place)
    if not kinds:
        raise ToolUnavailableError(f"{artifact.name}: no engine opens {artifact.format} artifacts")
    raise kinds[0].missing(context)


def users_of(option: str) -> list[str]:
    """Names of the engines that use an option of the bench, such as `--gpu-layers`."""
    return [name for name in ENGINES if option in engine_kind(name).options]
