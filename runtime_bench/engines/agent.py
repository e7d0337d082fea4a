"""Engines that are Python packages. The file of an agent is copied to the device, and the agent is controlled by pipes.

A device without Python cannot run them. The report is then marked "not measured".
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from compact.base.errors import EngineCrashedError, ToolUnavailableError
from compact.base.files import sha256_file
from runtime_bench.engines.base import (
    LOAD_SECONDS,
    WARM_UP,
    WARM_UP_TOKENS,
    EngineContext,
    EngineKind,
    Figures,
    PlacedArtifact,
    Settings,
)
from runtime_bench.engines.server_log import cpu_features, figures_of, last_lines
from runtime_bench.records import PYTHON_BYTES, Generation
from runtime_bench.transports.base import DeviceUnavailableError, LinkLostError, Transport

if TYPE_CHECKING:
    from runtime_bench.bench_artifact import BenchArtifact

AGENT = Path(__file__).with_name("device_agent.py")
_EXIT_SECONDS = 5.0
_REQUEST_SECONDS = 1800.0
# Exit status of ssh and adb after a lost connection.
_LINK_LOST = (255,)


class Tokenizer(Protocol):
    """Tokenizes on this machine for an engine without a tokenizer."""

    def encode(self, text: str) -> Sequence[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class AgentKind(EngineKind):
    """An engine that is a Python package. `ENGINES` of `device_agent.py` has the class that runs on the device.

    Attributes:
        takes_folder: the engine opens the artifact's folder; otherwise the artifact's main file.
    """

    takes_folder: bool = False

    def find(self, context: EngineContext, *, named: bool) -> Callable[[], AgentEngine] | None:
        """See `EngineKind.find`. Only the agent finds out whether the package is installed on the device."""
        if not named and not self.is_default(context):
            return None
        return partial(AgentEngine, self, context.transport, python=context.python)

    def is_default(self, context: EngineContext) -> bool:
        """Return whether this engine may run if the user named no engine."""
        del context
        return True

    def tokenizer_of(self, artifact: BenchArtifact) -> Tokenizer | None:
        """Return a tokenizer on this machine if the engine has none on the device, otherwise None."""
        del artifact
        return None


class AgentEngine:
    """One Python engine on one device."""

    times_load_from = "the call that loads the model (Python's own start not counted)"

    def __init__(self, kind: AgentKind, transport: Transport, *, python: str | None = None) -> None:
        """Place the agent.

        Args:
            kind: the engine.
            transport: the device.
            python: interpreter on the device; None for this one (local) or `python3`.

        Raises:
            DeviceUnavailableError: the device has no Python.
        """
        self.name = kind.name
        self.facts: Mapping[str, Any] = {}
        self._kind = kind
        self._transport = transport
        local = transport.spec == "local"
        self._python = python or (sys.executable if local else "python3")
        if (python or not local) and transport.run([self._python, "-c", "pass"]).returncode != 0:
            raise DeviceUnavailableError(
                f"{transport.spec}: {self._python} does not run on the device, and {self.name} needs it",
                "measure a GGUF artifact, which needs no Python, or name an interpreter with --device-python",
            )
        self._agent = transport.place(AGENT, sha256_file(AGENT))

    @contextmanager
    def open(self, model: PlacedArtifact, settings: Settings) -> Iterator[AgentSession]:
        """Start the agent on the artifact. See `Engine.open`."""
        environment = {"GGML_NO_BACKTRACE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        child = self._transport.converse([self._python, self._agent], environment=environment)
        session = AgentSession(self._kind, self._transport.spec, child, settings.execution_provider)
        try:
            artifact = model.artifact
            request = {
                "op": "open",
                "engine": self.name,
                "path": model.folder if self._kind.takes_folder else model.path,
                "threads": settings.threads,
                "context": settings.context,
                "gpu_layers": settings.gpu_layers,
                "provider": settings.execution_provider,
                "cache_shape": None if artifact.cache_shape is None else list(artifact.cache_shape),
            }
            session.begin(request, self._kind.tokenizer_of(artifact))
            if artifact.kv_cache_bytes_per_position is not None:
                session.know_cache(artifact.kv_cache_bytes_per_position, settings.context)
            yield session
        finally:
            session.close()


class AgentSession:
    """The agent with its model loaded."""

    def __init__(self, kind: AgentKind, device: str, child: subprocess.Popen[bytes], provider: str) -> None:
        self._engine = kind.name
        self._cache_grows = kind.cache_grows
        self._device = device
        self._child = child
        self._provider = provider
        self._cache_bytes: int | None = None
        self._longest = 0
        self._tokenizer: Tokenizer | None = None
        # stderr is only used after a crash, but it is always read, because a full pipe would block the child.
        self._stderr = _Drain(child)
        self.pid = 0
        self.load_s = 0.0
        self.figures = Figures()
        self.own_cpu_s = self.busy_s = 0.0

    def begin(self, request: Mapping[str, Any], tokenizer: Tokenizer | None) -> None:
        """Load the model."""
        self._tokenizer = tokenizer
        reply = self._parsed(self._exchange(request, LOAD_SECONDS))
        self.pid, self.load_s = int(reply["pid"]), float(reply["load_s"])
        figures = figures_of(str(reply["log"]))
        buffers = dict(figures.buffers)
        if reply["rss_before"] is not None:
            buffers[PYTHON_BYTES] = int(reply["rss_before"])
        facts = dict(reply["facts"])
        if (features := cpu_features(str(facts.pop("system_info", "")))) is not None:
            facts["cpu_features"] = features
        self.figures = replace(figures, buffers=buffers, engine={**figures.engine, **facts})

    def know_cache(self, bytes_per_position: int, context: int) -> None:
        """Compute the size of the key-value cache for an engine that does not report it."""
        if self._cache_grows:
            self._cache_bytes = bytes_per_position
        else:  # allocated for the whole context at once
            self.figures = replace(self.figures, kv_cache_bytes=bytes_per_position * context)

    def warm_up(self) -> None:
        """See `Session.warm_up`."""
        self.generate("warm-up", WARM_UP, WARM_UP_TOKENS)
        self.own_cpu_s = self.busy_s = 0.0

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """See `Session.count_tokens`."""
        if self._tokenizer is not None:
            return [len(self._tokenizer.encode(text)) for text in texts]
        return [int(count) for count in self._ask({"op": "count", "texts": list(texts)})["counts"]]

    def generate(self, name: str, text: str, n_tokens: int, depth: int | None = None) -> Generation:
        """See `Session.generate`."""
        request: dict[str, Any] = {"op": "generate", "n_tokens": n_tokens}
        if self._tokenizer is None:
            request["text"] = text
        else:
            request["ids"] = list(self._tokenizer.encode(text))
        begin, used = time.monotonic(), time.process_time()
        line = self._exchange(request, _REQUEST_SECONDS)
        self.busy_s += time.monotonic() - begin
        self.own_cpu_s += time.process_time() - used
        reply = self._parsed(line)
        made = reply["text"] if self._tokenizer is None else self._tokenizer.decode(reply["ids"])
        times = tuple(float(value) for value in reply["token_s"])
        self._longest = max(self._longest, int(reply["prompt_tokens"]) + len(times))
        if self._cache_bytes is not None:
            self.figures = replace(self.figures, kv_cache_bytes=self._cache_bytes * self._longest)
        return Generation(name, depth, int(reply["prompt_tokens"]), float(reply["prompt_s"]), times, len(made))

    def close(self) -> None:
        """End the agent by closing its stdin. Safe to call twice."""
        if self._child.stdin is not None:
            with contextlib.suppress(OSError):
                self._child.stdin.close()
        try:
            self._child.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            _kill(self._child)
            self._child.wait()
        if self._child.stdout is not None:
            self._child.stdout.close()
        self._stderr.close()

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return self._parsed(self._exchange(request, _REQUEST_SECONDS))

    def _exchange(self, request: Mapping[str, Any], seconds: float) -> bytes:
        """Send a request and return the line of the answer. An agent that does not answer in time is ended."""
        assert self._child.stdin is not None and self._child.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            _kill(self._child)

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        try:
            self._child.stdin.write(json.dumps(request).encode("ascii") + b"\n")
            self._child.stdin.flush()
            line = self._child.stdout.readline()
        except OSError:
            line = b""
        finally:
            timer.cancel()
        if line.endswith(b"\n"):
            return line
        if late.is_set():
            raise DeviceUnavailableError(
                f"{self._engine}: no answer within {seconds:.0f} s", "check whether the device is busy"
            )
        raise self._gone()

    def _parsed(self, line: bytes) -> dict[str, Any]:
        try:
            reply = json.loads(line)
            if "ok" in reply:
                return dict(reply["ok"])
            kind, message = str(reply["error"]), " ".join(str(reply["message"]).split())[:500]
        except (ValueError, KeyError, TypeError) as error:
            raise EngineCrashedError(
                f"{self._engine}: the agent gave an invalid answer: {line[:100]!r}",
                "check that the Python on the device starts without printing anything",
            ) from error
        if kind == "unavailable":
            hint = f"install it on the device: pip install {self._engine}"
            if self._provider != "cpu":
                hint = f"install {self._engine}'s package with {self._provider} on the device, or measure on cpu"
            if self._device == "local":
                raise ToolUnavailableError(message, hint)
            raise DeviceUnavailableError(f"{message} on {self._device}", hint)
        if kind == "bug":
            raise RuntimeError(f"device agent: {message}")
        raise EngineCrashedError(message, "check that this version of the engine supports the artifact")

    def _gone(self) -> EngineCrashedError | LinkLostError:
        try:
            code = self._child.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            _kill(self._child)
            code = self._child.wait()
        reason = last_lines(self._stderr.text())
        if code in _LINK_LOST and self._device != "local":
            return LinkLostError(f"{self._device}: the link was lost during a measurement ({reason or 'no reason'})")
        return EngineCrashedError(
            f"{self._engine} died (exit code {code}){f': {reason}' if reason else ''}",
            "try a smaller --context, because memory may have run out",
        )


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End a client at once, with the processes it started: locally, a shell is the parent of the agent."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL)  # every client has its own session
    child.kill()


class _Drain:
    """Copies a child's stderr to a temporary file in a thread, so that the child never blocks."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._source = child.stderr
        self._thread: threading.Thread | None = None
        if self._source is not None:
            self._thread = threading.Thread(target=self._copy, daemon=True)
            self._thread.start()

    def _copy(self) -> None:
        assert self._source is not None
        with contextlib.suppress(OSError, ValueError):
            while block := os.read(self._source.fileno(), 1 << 16):
                self._file.write(block)

    def text(self) -> str:
        """Return the end of the output."""
        if self._thread is not None:
            self._thread.join(1.0)
        self._file.seek(max(0, self._file.seek(0, os.SEEK_END) - 8192))
        return self._file.read().decode("utf-8", "replace")

    def close(self) -> None:
        if self._thread is not None:
            self._thread.join(1.0)
        if self._source is not None:
            self._source.close()
        self._file.close()
