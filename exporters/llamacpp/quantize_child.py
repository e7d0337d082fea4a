"""Child process of `exporters.llamacpp.quantize`: calls `llama_model_quantize`.

Run as `python -m exporters.llamacpp.quantize_child`.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from exporters.native.child_main import Answer, Channel, NativeLog, RefusedError
from exporters.native.pipe_messages import Array

# `[  12/ 272] blk.0.attn_q.weight - [...], type = f16, converting to q4_K .. size = ...`
_LINE = re.compile(r"^\[\s*(\d+)/\s*(\d+)\]")


class _Server:
    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._callback: Any = None  # llama.cpp keeps a raw pointer, so this reference must stay alive

    def __call__(self, request: dict[str, Any], arrays: list[Array]) -> Answer:
        try:
            import llama_cpp
        except (ImportError, RuntimeError, OSError) as error:  # not installed, or its shared library cannot be loaded
            hint = "install the extra: pip install 'compact-edge[prune]'"
            raise RefusedError("unavailable", f"llama-cpp-python cannot be used: {error}", hint) from error
        log = NativeLog(self._on_line)
        self._callback = llama_cpp.llama_log_callback(log)
        llama_cpp.llama_log_set(self._callback, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_quantize_default_params()
        params.nthread = request["n_threads"]
        params.ftype = request["ftype"]
        if request["embedding_type"] is not None:
            params.token_embedding_type = request["embedding_type"]
        if request["output_type"] is not None:
            params.output_tensor_type = request["output_type"]
        overrides = _overrides(llama_cpp, request["tensor_types"])
        if overrides is not None:
            params.tt_overrides = overrides
        entries = _entries(llama_cpp, request["names"], arrays)
        if entries is not None:
            params.imatrix = entries
        source, target = bytes.fromhex(request["source"]), bytes.fromhex(request["target"])
        if llama_cpp.llama_model_quantize(source, target, ctypes.byref(params)) != 0:
            # The error may follow a padded progress line without a line break, so collapse white space.
            raise _refusal(" ".join(log.reason().split()) or "no reason given")
        return {}, ()

    def _on_line(self, line: str) -> None:
        if match := _LINE.match(line):
            self._channel.progress(done=int(match[1]), total=int(match[2]))


def _overrides(llama_cpp: Any, types: Mapping[str, int]) -> Any:
    """Build the array of `llama_model_tensor_override` for `llama_model_quantize_params.tt_overrides`."""
    if not types:
        return None
    entries = (llama_cpp.llama_model_tensor_override * (len(types) + 1))()
    for entry, (name, kind) in zip(entries, types.items(), strict=False):
        # llama.cpp searches the tensor's name for this regular expression.
        entry.pattern = ("^" + name.replace(".", r"\.") + "$").encode()
        entry.type = kind
    return entries  # the last entry has no pattern and ends the list


def _entries(llama_cpp: Any, names: Sequence[str], arrays: Sequence[Array]) -> Any:
    """Build the array of `llama_model_imatrix_data` for `llama_model_quantize_params.imatrix`."""
    if not names:
        return None
    entries = (llama_cpp.llama_model_imatrix_data * (len(names) + 1))()
    for entry, name, values in zip(entries, names, arrays, strict=False):
        entry.name = name.encode("utf-8")
        # llama.cpp copies the values first, and `arrays` stays alive during the call.
        entry.data = np.ascontiguousarray(values, dtype=np.float32).ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    return entries  # the last entry stays zero and ends the list


def _refusal(reason: str) -> RefusedError:
    if "imatrix" in reason or "importance matrix" in reason:
        hint = "provide an importance matrix, or choose a larger quantization"
        return RefusedError("usage", f"llama.cpp needs an importance matrix: {reason}", hint)
    if "requantizing from type" in reason:
        return RefusedError("quantized", f"the source is already quantised: {reason}", "start from f16 or f32")
    if "no tensor type fallback" in reason or "invalid output file type" in reason:
        return RefusedError("usage", f"llama.cpp cannot use this type here: {reason}", "choose another type")
    if "validation failed" in reason:
        return RefusedError(
            "gate",
            f"the quantised values are not finite: {reason}",
            "check the source and the importance matrix for NaN",
        )
    if "iostream error" in reason or "write" in reason:
        return RefusedError("storage", f"cannot write the file: {reason}", "check the free space of the disk")
    if "unknown model architecture" in reason:
        return RefusedError("architecture", f"llama.cpp does not know this model: {reason}", "update llama-cpp-python")
    return RefusedError("damaged", f"llama.cpp cannot quantise the model: {reason}", "export the source again")


if __name__ == "__main__":
    _channel = Channel()
    _channel.serve(_Server(_channel))
