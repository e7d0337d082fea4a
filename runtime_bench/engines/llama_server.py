"""llama.cpp's llama-server: an engine for every device. It gets text over HTTP on the device's loopback.

The server is reached directly, through `ssh -L` or through `adb forward`. All times are measured on the device: the
load time is in the server's log, the others are in `timings_per_token`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from compact.base.errors import EngineCrashedError, ToolUnavailableError, UsageError
from compact.base.files import sha256_file
from runtime_bench.engines.base import (
    ALL_LAYERS,
    LOAD_SECONDS,
    PROCESS_SECONDS,
    WARM_UP,
    WARM_UP_TOKENS,
    EngineContext,
    EngineKind,
    Figures,
    PlacedArtifact,
    Settings,
)
from runtime_bench.engines.server_log import figures_of, last_lines, loaded_after, port_of
from runtime_bench.engines.stream import OLD_HINT, NoAnswerError, Saved, completion_of, json_of, post, unexpected
from runtime_bench.records import GGUF, Generation
from runtime_bench.toolchain.engine_flags import architecture_named, variant_for
from runtime_bench.toolchain.engine_folder import EngineFolder, find_engine, read_engine_dir
from runtime_bench.transports.base import DeviceUnavailableError, LinkLostError, Program, Transport

T = TypeVar("T")
_LOG = "llama-server.log"
_POLL_SECONDS = 0.1
_STATUS_SECONDS = 5.0
_REQUEST_SECONDS = 1800.0


class LlamaServerKind(EngineKind):
    """llama-server from a folder that the user names, or as `compact-edge engine build` built it."""

    name = "llama-server"
    formats = (GGUF,)
    options = frozenset({"--engine-dir", "--gpu-layers"})

    def find(self, context: EngineContext, *, named: bool) -> Callable[[], LlamaServer] | None:
        """See `EngineKind.find`: the user's folder, otherwise the best engine in the cache."""
        del named
        machine, system = _machine(context), _system(context)
        if context.engine_dir is not None:
            folder: EngineFolder | None = read_engine_dir(context.engine_dir, architecture=machine, system=system)
        else:
            folder = find_engine(context.cache, machine, context.device.isa_features, system=system)
        return None if folder is None else partial(LlamaServer, context.transport, folder)

    def missing(self, context: EngineContext) -> ToolUnavailableError:
        """See `EngineKind.missing`. The hint has the command that builds llama-server for this device."""
        machine = _machine(context)
        try:
            variant = variant_for(architecture_named(machine), context.device.isa_features).name
        except UsageError:
            hint = "name a folder with llama-server by --engine-dir"
        else:
            build = f"compact-edge engine build --arch {machine} --isa {variant}"
            hint = f"run: {build}, or name a folder with llama-server by --engine-dir"
        return ToolUnavailableError(f"found no llama-server that runs on {machine}", hint)


ENGINE = LlamaServerKind()


def _machine(context: EngineContext) -> str:
    return context.device.machine or "unknown"


def _system(context: EngineContext) -> str:
    return {"macos": "darwin"}.get(context.device.os, context.device.os)


class LlamaServer:
    """llama-server on one device. The binaries are placed once."""

    name = LlamaServerKind.name
    times_load_from = "the start of the process"

    def __init__(self, transport: Transport, folder: EngineFolder) -> None:
        """Place the engine's files on the device. Raises the errors of `Transport.place_folder`."""
        self.facts: Mapping[str, Any] = folder.as_dict()
        self._transport = transport
        # Files of a built engine were hashed when it was found.
        files = {
            path.name: (path, folder.sha256.get(path.name) or sha256_file(path))
            for path in folder.files
            if path != folder.bench
        }
        self._folder = transport.place_folder(files)
        self._program = f"{self._folder}/{folder.server.name}"
        if transport.spec != "local":
            transport.run(["chmod", "755", self._program])
        # The user's variables (LLAMA_ARG_..., LLAMA_API_KEY) would change the measurement or require a key.
        names = [line.partition("=")[0] for line in transport.run(["env"]).text.splitlines()]
        ours = sorted({name for name in names if re.fullmatch(r"LLAMA_[A-Z0-9_]+", name)})
        self._without = ["env", *(word for name in ours for word in ("-u", name))] if ours else []
        # A server from llama.cpp's releases needs the shared libraries in its folder.
        self._environment = {"LD_LIBRARY_PATH": self._folder} if len(files) > 1 else {}

    @contextmanager
    def open(self, model: PlacedArtifact, settings: Settings) -> Iterator[ServerSession]:
        """Start the server on the artifact. See `Engine.open`."""
        program = self._transport.start(
            [*self._without, self._program, *arguments(model.path, settings)],
            log=_LOG,
            limit=PROCESS_SECONDS,
            environment=self._environment,
        )
        try:
            log = self._wait(program)
            port = port_of(log)
            assert port is not None
            with self._transport.forward(port) as local:
                yield ServerSession(self._transport, program, local, log)
        finally:
            program.stop()

    def _wait(self, program: Program) -> str:
        """Wait until the server listens with its model loaded; return the log."""
        end = time.monotonic() + LOAD_SECONDS
        while time.monotonic() < end:
            alive = program.alive()
            log = read_log(self._transport, program.log)
            if port_of(log) is not None and loaded_after(log) is not None:
                return log
            if not alive and _unexplained(program):
                raise _link_lost(self._transport)
            if not alive:
                raise EngineCrashedError(
                    f"llama-server did not load the model: {last_lines(log) or 'no log'}", OLD_HINT
                )
            time.sleep(_POLL_SECONDS)
        raise DeviceUnavailableError(f"llama-server did not load the model within {LOAD_SECONDS:.0f} s")


class ServerSession:
    """A server with its model loaded."""

    def __init__(self, transport: Transport, program: Program, port: int, log: str) -> None:
        self._transport = transport
        self._program = program
        self._port = port
        self.pid = program.pid
        self.load_s = loaded_after(log) or 0.0
        self.figures: Figures = figures_of(log)
        self.own_cpu_s = self.busy_s = 0.0

    def warm_up(self) -> None:
        """See `Session.warm_up`."""
        self._complete(WARM_UP, WARM_UP_TOKENS)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """See `Session.count_tokens`."""
        return [self._count(text) for text in texts]

    def _count(self, text: str) -> int:
        saved = self._post("/tokenize", {"content": text, "add_special": True, "parse_special": True})
        tokens = self._parsed(lambda: json_of(saved)).get("tokens")
        if not isinstance(tokens, list):
            raise unexpected("no tokens in its answer")
        return len(tokens)

    def generate(self, name: str, text: str, n_tokens: int, depth: int | None = None) -> Generation:
        """See `Session.generate`."""
        saved = self._complete(text, n_tokens)
        self.own_cpu_s += saved.cpu_s
        self.busy_s += saved.wall_s
        made = self._parsed(lambda: completion_of(saved))
        return Generation(name, depth, made.prompt_tokens, made.prompt_s, made.token_s, len(made.text))

    def _complete(self, text: str, n_tokens: int) -> Saved:
        body = {
            "prompt": text,
            "n_predict": n_tokens,
            "stream": True,
            "timings_per_token": True,
            "cache_prompt": False,
            "ignore_eos": True,
            # Greedy at the lowest cost. Any other sampler chain reads the whole vocabulary several times per
            # token (softmax, random choice), which takes longer for the larger vocabulary.
            "samplers": ["top_k"],
            "top_k": 1,
        }
        return self._post("/completion", body)

    def _post(self, path: str, body: Mapping[str, Any]) -> Saved:
        return self._parsed(lambda: post(self._port, path, body, _REQUEST_SECONDS))

    def _parsed(self, action: Callable[[], T]) -> T:
        try:
            return action()
        except NoAnswerError as error:
            raise self._blame(error) from error

    def _blame(self, error: NoAnswerError) -> EngineCrashedError | LinkLostError:
        """Find out whether the engine or the link failed, from the log on the device if it can be read."""
        try:
            gone = self._transport.run(["kill", "-0", str(self.pid)]).returncode != 0
            log = read_log(self._transport, self._program.log)
        except DeviceUnavailableError as lost:
            return LinkLostError(f"{self._transport.spec}: the link was lost during a measurement ({lost.message})")
        if gone and _unexplained(self._program):
            return _link_lost(self._transport)
        if gone:
            return EngineCrashedError(
                f"llama-server died: {last_lines(log) or 'no log'}",
                "try a smaller --context, because memory may have run out",
            )
        return LinkLostError(f"{self._transport.spec}: no answer from llama-server ({error})")


def _unexplained(program: Program) -> bool:
    """Return whether a server ended and the device did not report its exit status.

    The device ends the server when the connection is lost. That is not a fault of the server.
    """
    end = time.monotonic() + _STATUS_SECONDS
    while program.alive() and time.monotonic() < end:
        time.sleep(_POLL_SECONDS)
    return program.returncode is None or program.lost


def _link_lost(transport: Transport) -> LinkLostError:
    return LinkLostError(f"{transport.spec}: the link was lost during a measurement", "check that the device is awake")


def arguments(path: str, settings: Settings) -> list[str]:
    """Return llama-server's arguments: one slot, no cache between requests, and a log with all values of the report."""
    layers = "999" if settings.gpu_layers == ALL_LAYERS else str(settings.gpu_layers)
    words = ["-m", path, "--host", "127.0.0.1", "--port", "0", "--offline"]
    words += ["--ctx-size", str(settings.context), "--parallel", "1", "--cache-ram", "0", "--no-slots", "-fit", "off"]
    words += ["--threads", str(settings.threads), "--threads-batch", str(settings.threads), "--gpu-layers", layers]
    # Prompts already have the template applied. The model's template is not trusted, and the log would quote it.
    words += ["--chat-template", "chatml"]
    return [*words, "--no-warmup", "--log-timestamps", "--log-prefix", "--log-colors", "off", "-lv", "4"]


def read_log(transport: Transport, path: str) -> str:
    """Return the server's log so far."""
    return transport.run(["cat", path]).stdout.decode("utf-8", "replace")
