"""An engine for tests: a child process that loads nothing and answers with made-up times."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

from runtime_bench.engines.base import Engine, EngineContext, EngineKind, Figures, PlacedArtifact, Settings
from runtime_bench.records import GGUF, Generation
from runtime_bench.transports.base import Transport

# Answers a line "tokens of the prompt, new tokens" with the seconds to each new token.
CHILD = (
    "import json, os, sys; print(os.getpid(), flush=True); "
    "[print(json.dumps([0.01 * int(prompt) + 0.05 * index for index in range(int(new))]), flush=True) "
    "for prompt, new in map(str.split, sys.stdin)]"
)


class ToySession:
    """One child. A token is a word."""

    load_s, own_cpu_s, busy_s = 0.25, 0.0, 1.0

    def __init__(self, to_child: IO[bytes], from_child: IO[bytes]) -> None:
        self._to, self._from = to_child, from_child
        self.pid = int(from_child.readline())
        self.figures = Figures(kv_cache_bytes=4096, engine={"version": "0.1"})

    def warm_up(self) -> None:
        self.generate("warm-up", "a word", 2)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def generate(self, name: str, text: str, n_tokens: int, depth: int | None = None) -> Generation:
        tokens = len(text.split())
        self._to.write(f"{tokens} {n_tokens}\n".encode())
        self._to.flush()
        times = tuple(json.loads(self._from.readline()))
        return Generation(name, depth, tokens, 0.01 * tokens, times, 5 * n_tokens)


class ToyEngine:
    """The child on one device."""

    name, times_load_from = "toy", "nothing"

    def __init__(self, transport: Transport) -> None:
        self.facts: Mapping[str, Any] = {"build": "of wood"}
        self._transport = transport

    @contextmanager
    def open(self, model: PlacedArtifact, settings: Settings) -> Iterator[ToySession]:
        assert model.path.endswith(".gguf") and settings.threads > 0
        child = self._transport.converse([sys.executable, "-c", CHILD])
        assert child.stdin is not None and child.stdout is not None and child.stderr is not None
        try:
            yield ToySession(child.stdin, child.stdout)
        finally:
            child.stdin.close()
            child.wait(20)
            child.stdout.close()
            child.stderr.close()


class ToyKind(EngineKind):
    """What a new engine's module has to say."""

    name = "toy"
    formats = (GGUF,)
    notes = ("the times are made up",)
    cache_grows = True

    def find(self, context: EngineContext, *, named: bool) -> Callable[[], Engine] | None:
        return (lambda: ToyEngine(context.transport)) if named else None


ENGINE = ToyKind()
