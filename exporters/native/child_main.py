"""Runs a native library in a child process (the child's side).

This module owns its process and must never run in the parent. It turns stdout into the frame channel and watches stdin
in a thread. It filters llama.cpp's log, which by default has thousands of lines per model.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from exporters.native.pipe_messages import Array, TornFrameError, read_frame, write_frame

Answer = tuple[Mapping[str, Any], Sequence[Array]]
Handler = Callable[[dict[str, Any], list[Array]], Answer]

LOG_WARN, LOG_ERROR, LOG_CONTINUED = 3, 4, 5  # ggml_log_level of ggml.h (the comment in llama_cpp is out of date)
_LOG_LIMIT = 1 << 20  # maximum bytes of warnings on stderr: one warning per decoded token must not fill the disk
_KEPT_ERRORS = 20


class RefusedError(Exception):
    """Raised when the child refuses a request. `kind` selects the error class in the parent process."""

    def __init__(self, kind: str, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.hint = hint


class Channel:
    """The child's end of the pipe to the parent."""

    def __init__(self) -> None:
        # Native code may print to stdout. So frames use a duplicate descriptor, and descriptor 1 becomes stderr.
        self._out: IO[bytes] = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)
        self._requests: queue.Queue[tuple[dict[str, Any], list[Array]]] = queue.Queue()

    def progress(self, **values: Any) -> None:
        """Send a progress message before the answer."""
        write_frame(self._out, {"status": "progress", **values})

    def serve(self, handler: Handler) -> None:
        """Answer requests until the parent closes the pipe. Then the process exits, even during a native call."""
        # Ctrl-C reaches the whole process group. Ignore it here; the parent kills this process.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=self._listen, daemon=True).start()
        while True:
            header, arrays = self._requests.get()
            try:
                answer, values = handler(header, arrays)
                write_frame(self._out, {"status": "ok", **answer}, values)
            except RefusedError as error:
                refusal = {"status": "error", "kind": error.kind, "message": error.message, "hint": error.hint}
                write_frame(self._out, refusal)
            except BrokenPipeError:
                os._exit(0)
            except Exception as error:
                traceback.print_exc()
                message = f"{type(error).__name__}: {error}"
                write_frame(self._out, {"status": "error", "kind": "bug", "message": message})

    def _listen(self) -> None:
        try:
            while (frame := read_frame(sys.stdin.buffer)) is not None:
                self._requests.put(frame)
        except TornFrameError:
            pass
        finally:
            # Only os._exit ends a process while its main thread is in native code.
            os._exit(0)


class NativeLog:
    """Receives llama.cpp's log (`llama_log_callback`). Warnings go to stderr. Errors are kept for messages."""

    def __init__(self, on_line: Callable[[str], None] | None = None) -> None:
        """Initialise. `on_line` is called with every complete line of any level."""
        self.errors: list[str] = []
        self._on_line = on_line
        self._line = ""
        self._level = 0
        self._written = 0

    def __call__(self, level: int, text: bytes | None, _user_data: object) -> None:
        if level != LOG_CONTINUED:
            self._level = level
        self._line += (text or b"").decode("utf-8", "replace")
        while "\n" in self._line:
            line, self._line = self._line.split("\n", 1)
            self._take(line)

    def reason(self) -> str:
        """Return the last errors as one line, or an empty text. Lines of `=` around errors are skipped."""
        messages = [line for line in self.errors if line.strip("= ")]
        # This line follows every failed load and has no information.
        reasons = [line for line in messages if not line.endswith(": failed to load model")]
        return "; ".join((reasons or messages)[-2:])

    def _take(self, line: str) -> None:
        if self._on_line is not None:
            self._on_line(line)
        if self._level not in (LOG_WARN, LOG_ERROR) or not line.strip():
            return
        if self._level == LOG_ERROR:
            self.errors = [*self.errors[-_KEPT_ERRORS:], line.strip()]
        if self._written < _LOG_LIMIT:
            self._written += len(line) + 1
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
