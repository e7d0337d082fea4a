"""Child process of `exporters.onnx.write`: runs onnxruntime-genai's model builder.

Run as `python -m exporters.onnx.builder_child`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
from pathlib import Path
from typing import Any

from exporters.native.child_main import Answer, Channel, RefusedError
from exporters.native.pipe_messages import Array
from exporters.onnx.folder import INSTALL_HINT
from exporters.onnx.types import other_version

# `Reading layer 12`, `Reading embedding layer`, `Saving ONNX model in ...`
_STEP = re.compile(r"^(Reading (?:embedding layer|layer \d+|final norm|LM head)|Saving ONNX model)")
# `numpy.ndarray.tofile` if it could not write all bytes
_SHORT_WRITE = re.compile(r"^\d+ requested and \d+ written$")


class Lines(io.TextIOBase):
    """Replaces stdout. Lines that name a build step become progress messages; all others are dropped."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._line = ""

    def writable(self) -> bool:
        """Return True, so that print works."""
        return True

    def write(self, text: str) -> int:
        """Receive text, which may end inside a line."""
        self._line += text
        while "\n" in self._line:
            line, self._line = self._line.split("\n", 1)
            if match := _STEP.match(line):
                self._channel.progress(step=match[1])
        return len(text)


class Server:
    """Answers the request `build`."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def __call__(self, request: dict[str, Any], arrays: list[Array]) -> Answer:
        del arrays
        checkpoint, folder, cache = (
            Path(os.fsdecode(bytes.fromhex(request[key]))) for key in ("checkpoint", "folder", "cache")
        )
        with contextlib.redirect_stdout(Lines(self._channel)):
            try:
                from exporters.onnx import builder as onnx_builder
            except (ImportError, OSError) as error:  # not installed, or a shared library cannot be loaded
                raise RefusedError(
                    "unavailable", f"onnxruntime-genai cannot be used: {_line(error)}", INSTALL_HINT
                ) from error
            if not onnx_builder.fits():
                found = onnx_builder.installed()
                raise RefusedError("unavailable", other_version(found), INSTALL_HINT)
            onnx_builder.install()
            precision, provider = request["precision"], request["provider"]
            try:
                onnx_builder.build(checkpoint, folder, cache, precision, provider, request["extra"])
            except Exception as error:
                raise _refusal(error) from error
        return {}, ()


def _refusal(error: Exception) -> RefusedError:
    # torch reports a failed allocation as a plain RuntimeError with this text.
    if isinstance(error, MemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error):
        return RefusedError("unavailable", "memory ran out during the build", "use a machine with more memory")
    # numpy raises OSError without errno for a full disk. Transformers does the same for invalid files, which is not a
    # storage error.
    if isinstance(error, OSError) and (error.errno is not None or _SHORT_WRITE.search(str(error))):
        return RefusedError("storage", f"the model cannot be written: {_line(error)}", "check the disk's free space")
    why = f"{type(error).__name__}: {_line(error)}"
    message = f"onnxruntime-genai's builder cannot write this model ({why})"
    return RefusedError("architecture", message, "choose other options, or another format")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def be_quiet() -> None:
    """Turn off network, progress bars and logs. Call this before the libraries are imported and read the variables."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TQDM_DISABLE="1", TOKENIZERS_PARALLELISM="false")
    # The quantiser logs two lines per matrix, and errors for tensors that it skips on purpose.
    logging.disable(logging.ERROR)


if __name__ == "__main__":
    be_quiet()
    _channel = Channel()
    _channel.serve(Server(_channel))
