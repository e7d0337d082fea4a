"""Which engine runs an artifact on a device, and what an artifact of another format would need."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compact.cache import Cache
from compact.errors import ToolUnavailableError, UsageError
from runtime_bench.artifact import GGUF, ONNX, Artifact
from runtime_bench.engines.agent import GENAI, LLAMA_CPP_PYTHON, ONNXRUNTIME, AgentEngine, Known
from runtime_bench.engines.base import Engine
from runtime_bench.engines.llama_server import NAME as LLAMA_SERVER
from runtime_bench.engines.llama_server import LlamaServer
from runtime_bench.transports.base import Transport

if TYPE_CHECKING:
    from runtime_bench.device_facts import DeviceFacts
    from runtime_bench.engine_folder import EngineFolder

ENGINES = {GGUF: (LLAMA_SERVER, LLAMA_CPP_PYTHON), ONNX: (GENAI, ONNXRUNTIME)}


class EngineChoice:
    """Makes engines for one device; equal engines are made once."""

    def __init__(
        self,
        transport: Transport,
        facts: DeviceFacts,
        cache: Cache,
        *,
        engine_dir: Path | None = None,
        device_python: str | None = None,
    ) -> None:
        self._transport = transport
        self._facts = facts
        self._cache = cache
        self._engine_dir = engine_dir
        self._device_python = device_python
        self._made: dict[str, tuple[Engine, Mapping[str, Any]]] = {}
        self._artifacts: dict[str, Artifact] = {}

    def name_for(self, artifact: Artifact, wanted: str | None) -> str:
        """The engine's name for an artifact.

        Raises:
            UsageError: the wanted engine does not open this format.
            ToolUnavailableError: no engine for it is at hand; the hint says how to get one.
        """
        known = ENGINES[artifact.format]
        if wanted is not None:
            if wanted not in known:
                raise UsageError(f"--engine {wanted} does not open {artifact.name}", f"it takes {' or '.join(known)}")
            return wanted
        if artifact.format != GGUF:
            return GENAI
        if self._engine_dir is not None or self._built is not None:
            return LLAMA_SERVER
        if self._transport.spec == "local" and find_spec("llama_cpp") is not None:
            return LLAMA_CPP_PYTHON
        raise self._no_server()

    def engine(self, name: str) -> tuple[Engine, Mapping[str, Any]]:
        """The engine on the device, and what is known of it. Raises as the engines' constructors."""
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def remember(self, path: str, artifact: Artifact) -> None:
        """Tell which artifact lies at a path of the device."""
        self._artifacts[path] = artifact

    def _make(self, name: str) -> tuple[Engine, Mapping[str, Any]]:
        if name == LLAMA_SERVER:
            folder = self._folder()
            return LlamaServer(self._transport, folder), folder.as_dict()
        engine = AgentEngine(
            name,
            self._transport,
            python=self._device_python,
            known_of=None if name == LLAMA_CPP_PYTHON else lambda path: self._known(name, path),
        )
        return engine, {}

    def _folder(self) -> EngineFolder:
        from runtime_bench.engine_folder import read_engine_dir

        if self._engine_dir is not None:
            return read_engine_dir(self._engine_dir, architecture=self._machine, system=self._system)
        if self._built is None:
            raise self._no_server()
        return self._built

    @cached_property
    def _built(self) -> EngineFolder | None:
        """The best engine in the cache; its files are hashed whenever it is looked for, so once."""
        from runtime_bench.engine_folder import find_engine

        return find_engine(self._cache, self._machine, self._facts.isa_features, system=self._system)

    def _no_server(self) -> ToolUnavailableError:
        from runtime_bench.engine_flags import architecture_named, variant_for

        try:
            fitting = variant_for(architecture_named(self._machine), self._facts.isa_features).name
        except UsageError:
            hint = "name a folder with one by --engine-dir"
        else:
            build = f"compact-edge engine build --arch {self._machine} --isa {fitting}"
            hint = f"run: {build}, or name a folder with one by --engine-dir"
        return ToolUnavailableError(f"no llama-server that runs on this {self._machine} is at hand", hint)

    @property
    def _machine(self) -> str:
        return self._facts.machine or "unknown"

    @property
    def _system(self) -> str:
        return {"macos": "darwin"}.get(self._facts.os, self._facts.os)

    def _known(self, engine: str, path: str) -> Known:
        artifact = self._artifacts[path]
        assert artifact.cache_shape is not None
        tokenizer = _HostTokenizer(artifact.path) if engine == ONNXRUNTIME else None
        return Known(artifact.cache_shape, artifact.kv_cache_bytes_per_position, tokenizer)


class _HostTokenizer:
    """tokenizer.json of an ONNX folder, for an engine that has no tokenizer."""

    def __init__(self, folder: Path) -> None:
        from compact.tokenizer import load_tokenizer

        self._tokenizer = load_tokenizer(folder)

    def encode(self, text: str) -> list[int]:
        from compact.tokenizer import encode

        return encode(self._tokenizer, [text], add_special_tokens=False)[0]

    def decode(self, ids: Any) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text
