"""One child for many quantizations: llama.cpp fills the tables of a type once per process, which takes seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from exporters.native.child import NativeChild
from exporters.native.pipe_messages import Array


class KeptQuantizer:
    """Stands in for `NativeChild` in `exporters.llamacpp.quantize`: `close` leaves the child for the next file."""

    def __init__(self) -> None:
        self._child: NativeChild | None = None

    def __call__(self, module: str, subject: str, crash_hint: str) -> KeptQuantizer:
        """What `NativeChild(...)` is for the next file."""
        if self._child is None:
            self._child = NativeChild(module, subject, crash_hint)
        self._child._subject = subject
        return self

    def ask(
        self, header: Mapping[str, Any], arrays: Sequence[Array], on_progress: Callable[[dict[str, Any]], None]
    ) -> Any:
        assert self._child is not None
        return self._child.ask(header, arrays, on_progress)

    def close(self) -> None:
        """The child goes on."""

    def kill(self) -> None:
        """After an error the next file gets a new child."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def end(self) -> None:
        if self._child is not None:
            self._child.close()
