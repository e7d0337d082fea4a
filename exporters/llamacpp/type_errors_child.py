"""Child process of `exporters.llamacpp.type_errors`: quantises rows with ggml and reads them back.

Run as `python -m exporters.llamacpp.type_errors_child`.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

from exporters.llamacpp.quant_types import GGML_TYPES
from exporters.native.child_main import Answer, Channel, RefusedError
from exporters.native.pipe_messages import Array

_FLOATS = {"F32": np.float32, "F16": np.float16}
_LIBRARIES = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll")


class _Traits(ctypes.Structure):
    """The first fields of `ggml_type_traits` (ggml.h)."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


class _Server:
    def __init__(self) -> None:
        self._library: Any = None

    def __call__(self, request: dict[str, Any], arrays: list[Array]) -> Answer:
        if self._library is None:
            self._library = _load()
        rows = np.ascontiguousarray(arrays[0], dtype=np.float32)  # [rows, n_in]
        weights = np.ascontiguousarray(arrays[1], dtype=np.float32) if len(arrays) > 1 else None  # [n_in]
        importance = np.ones(rows.shape[1]) if weights is None else weights.astype(np.float64)
        total = float((np.square(rows, dtype=np.float64) * importance).sum())
        errors = []
        for name in request["types"]:
            difference = np.subtract(rows, self._read_back(rows, name, weights), dtype=np.float64)
            errors.append(float((np.square(difference) * importance).sum()) / total if total else 0.0)
        return {"errors": errors}, ()

    def _read_back(self, rows: Array, name: str, weights: Array | None) -> Array:
        """Return rows [rows, n_in] after quantising them to a type and back, float32."""
        if name in _FLOATS:
            rounded: Array = rows.astype(_FLOATS[name]).astype(np.float32)
            return rounded
        kind = GGML_TYPES[name]
        quantised = np.zeros(rows.size // kind.block * kind.bytes, dtype=np.uint8)
        weighted = weights is not None and kind.weighted
        self._library.ggml_quantize_chunk(
            kind.value,
            rows.ctypes.data,
            quantised.ctypes.data,
            0,
            *rows.shape,
            weights.ctypes.data if weighted and weights is not None else None,
        )
        result = np.empty_like(rows)
        traits = self._library.ggml_get_type_traits(kind.value).contents
        traits.to_float(quantised.ctypes.data, result.ctypes.data, rows.size)
        return result


def _load() -> Any:
    try:
        import llama_cpp
    except (ImportError, RuntimeError, OSError) as error:  # not installed, or its shared library cannot be loaded
        hint = "install the extra: pip install 'compact-edge[prune]'"
        raise RefusedError("unavailable", f"llama-cpp-python cannot be used: {error}", hint) from error
    folder = Path(llama_cpp.__file__).parent / "lib"
    path = next((folder / name for name in _LIBRARIES if (folder / name).is_file()), None)
    if path is None:
        raise RefusedError("unavailable", f"{folder}: ggml's library is missing", "install llama-cpp-python again")
    library = ctypes.CDLL(str(path))
    library.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
    library.ggml_get_type_traits.argtypes = [ctypes.c_int]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]
    return library


if __name__ == "__main__":
    Channel().serve(_Server())
