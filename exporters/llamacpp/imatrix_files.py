"""Files of importance matrices: reads llama.cpp's GGUF and legacy formats, and writes the GGUF format.

GGUF format (`IMatrixCollector::save_imatrix` in llama.cpp's tools/imatrix/imatrix.cpp): `general.type` is `imatrix`.
Each matrix NAME has two float32 tensors: `NAME.in_sum2` [n_in, n_mat] with sums of squares, and `NAME.counts`
[1, n_mat] with numbers of tokens.

Legacy format (`save_imatrix_legacy`): int32 number of entries. Each entry has an int32 length and the name, int32
calls, int32 number of values, and float32 values (mean times calls). An int32 number of chunks, an int32 length and
the name of the data set may follow.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from compact.base.errors import DamagedFileError, DataError, ModelNotFoundError
from compact.base.files import as_storage_error
from compact.checkpoints.gguf_file import GgufFile, read_gguf
from exporters.llamacpp.imatrix import Imatrix

_SUMS, _COUNTS = ".in_sum2", ".counts"
_SOURCE_KEY = "compact_edge.source_id"
_INT32 = struct.Struct("<i")
_HINT = "measure the importance matrix again"


def read_imatrix(path: Path) -> Imatrix:
    """Read an importance matrix in either format.

    As in llama.cpp, an expert that no token reached gets the value 1 for each input.

    Raises:
        ModelNotFoundError: the file does not exist.
        DataError: the file is a GGUF, but not an importance matrix.
        DamagedFileError: the file is truncated, or a value is negative or not finite.
        StorageError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"no importance matrix at {path}", "correct the path") from error
    except OSError as error:
        raise as_storage_error(error, path) from error
    matrix = _read_gguf(read_gguf(path)) if magic == b"GGUF" else _read_legacy(path)
    for name, values in matrix.means.items():
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise DamagedFileError(
                f"{path}: an importance value of {name} is negative or not finite", "measure the matrix again"
            )
    return matrix


def write_imatrix(matrix: Imatrix, path: Path) -> None:
    """Write the GGUF format, which `llama-quantize --imatrix` can also read. Equal matrices give equal bytes.

    Raises:
        StorageError: the file cannot be written.
    """
    writer = gguf.GGUFWriter(None, "imatrix")
    # Files from llama.cpp do not have this key.
    del writer.kv_data[0]["general.architecture"]
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", list(matrix.datasets) or ["calibration"])
    writer.add_uint32("imatrix.chunk_count", matrix.tokens // matrix.chunk_size if matrix.chunk_size else 1)
    writer.add_uint32("imatrix.chunk_size", matrix.chunk_size or matrix.tokens)
    writer.add_string(_SOURCE_KEY, matrix.source_id)
    for name in sorted(matrix.means):
        counts = matrix.counts[name]
        means = matrix.means[name].reshape(len(counts), -1)
        sums = (means.astype(np.float64) * counts[:, None]).astype(np.float32)
        writer.add_tensor(name + _SUMS, sums)
        writer.add_tensor(name + _COUNTS, counts.astype(np.float32).reshape(-1, 1))
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    except OSError as error:
        raise as_storage_error(error, path) from error
    finally:
        writer.close()


def _read_gguf(file: GgufFile) -> Imatrix:
    if file.values.get("general.type") != "imatrix":
        raise DataError(f"{file.path}: this GGUF is not an importance matrix", "its general.type must be imatrix")
    names = [name.removesuffix(_SUMS) for name in file.tensors if name.endswith(_SUMS)]
    if not names or any(name + _COUNTS not in file.tensors for name in names):
        raise DamagedFileError(f"{file.path}: the importance matrix has no entries, or sums without counts", _HINT)
    means: dict[str, NDArray[np.float32]] = {}
    counts: dict[str, NDArray[np.int64]] = {}
    for name in names:
        sums, tokens = _floats(file, name + _SUMS), np.rint(_floats(file, name + _COUNTS)).astype(np.int64).reshape(-1)
        if not len(tokens) or sums.size % len(tokens):
            raise DamagedFileError(f"{file.path}: the sums and counts of {name} have different shapes", _HINT)
        # Divide in float32 as llama-quantize does, so that the quantised bytes are equal.
        divisor = np.maximum(tokens, 1).astype(np.float32)[:, None]
        rows = sums.reshape(len(tokens), -1)
        means[name] = np.where(tokens[:, None] > 0, rows / divisor, np.float32(1)).astype(np.float32).reshape(-1)
        counts[name] = tokens
    return Imatrix(
        means,
        counts,
        tokens=max(int(values.max()) for values in counts.values()),
        chunk_size=_integer(file.values.get("imatrix.chunk_size")),
        source_id=str(file.values.get(_SOURCE_KEY, "")),
        datasets=_strings(file.values.get("imatrix.datasets")),
    )


def _floats(file: GgufFile, name: str) -> NDArray[np.float32]:
    tensor = file.tensors[name]
    if tensor.qtype != gguf.GGMLQuantizationType.F32:
        raise DamagedFileError(f"{file.path}: {name} is {tensor.qtype.name}, not F32", _HINT)
    return file.read_rows(tensor, 0, tensor.shape[0]).view("<f4").astype(np.float32, copy=False)


def _integer(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _strings(value: Any) -> tuple[str, ...]:
    return tuple(str(item) for item in value) if isinstance(value, list) else ()


def _read_legacy(path: Path) -> Imatrix:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise as_storage_error(error, path) from error
    at = 0

    def take(size: int) -> bytes:
        nonlocal at
        if size < 0 or at + size > len(data):
            raise DamagedFileError(f"{path}: not an importance matrix, or truncated at byte {at}", _HINT)
        at += size
        return data[at - size : at]

    def integer() -> int:
        return int(_INT32.unpack(take(4))[0])

    means: dict[str, NDArray[np.float32]] = {}
    counts: dict[str, NDArray[np.int64]] = {}
    n_entries = integer()
    if n_entries < 1:
        raise DamagedFileError(f"{path}: the importance matrix has no entries", _HINT)
    for _ in range(n_entries):
        name = take(integer()).decode("utf-8", "replace")
        calls, size = integer(), integer()
        if size < 1:
            raise DamagedFileError(f"{path}: {name[:80]!r} has {size} values", _HINT)
        values = np.frombuffer(take(4 * size), dtype="<f4").astype(np.float32)
        means[name] = values / np.float32(calls) if calls > 0 else values
        counts[name] = np.array([max(calls, 1)], dtype=np.int64)
    datasets = _legacy_dataset(take, integer) if at < len(data) else ()
    return Imatrix(means, counts, tokens=max(int(values[0]) for values in counts.values()), datasets=datasets)


def _legacy_dataset(take: Callable[[int], bytes], integer: Callable[[], int]) -> tuple[str, ...]:
    integer()  # number of chunks
    return (take(integer()).decode("utf-8", "replace"),)
