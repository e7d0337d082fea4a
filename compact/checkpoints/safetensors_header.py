"""Read and write the header of a safetensors file. It lists the tensors in the file and their positions.

A file has three parts (see "Format" in the safetensors README): the length of the header as 8 little-endian bytes, the
JSON header, and the bytes of all tensors without gaps.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compact.base.errors import DamagedFileError, StorageError


@dataclass(frozen=True)
class HeaderEntry:
    """One tensor: its name, safetensors dtype, row-major shape, and the offset of its first byte in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


def read_header(path: Path) -> list[HeaderEntry]:
    """Return the tensors of a safetensors file, in the order of their bytes. This does not read weights.

    Raises:
        DamagedFileError: sizes, offsets or types do not match the file, or the header is not valid JSON.
        StorageError: the file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        # `safe_open` validates the whole header against the size of the file, so the numbers below can be trusted.
        with safe_open(str(path), framework="numpy"):
            pass
        with path.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            header = json.loads(handle.read(length))
    except SafetensorError as error:
        raise DamagedFileError(f"{path}: not a valid safetensors file ({str(error)[:160]})") from error
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, struct.error) as error:
        raise DamagedFileError(f"{path}: damaged safetensors header ({str(error)[:160]})") from error
    header.pop("__metadata__", None)
    return [
        HeaderEntry(name, info["dtype"], tuple(info["shape"]), 8 + length + info["data_offsets"][0])
        for name, info in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0])
    ]


def header_json(entries: Mapping[str, Any]) -> bytes:
    """Return the JSON of a header, without the length before it and the padding after it.

    The only metadata key is `format`, which Transformers requires. With more keys, the reference implementation writes
    them in random order, so equal files would have different bytes.

    Args:
        entries: `dtype`, `shape` and `data_offsets` of each tensor, by its name.
    """
    return json.dumps({"__metadata__": {"format": "pt"}, **entries}, separators=(",", ":")).encode()
