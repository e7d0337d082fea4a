"""The header of a safetensors file, read and written: which tensors the file holds, and where.

Format (the safetensors README, "Format"): 8 bytes of header length, little-endian; a JSON header; the tensors' bytes
back to back.
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
    """The tensors of a safetensors file, in the order of their bytes. No weights are read.

    Raises:
        DamagedFileError: sizes, offsets or types that do not fit the file, or a header that is not JSON.
        StorageError: the file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        # Validates the whole header against the file's size; the numbers read below can then be trusted.
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
    """The JSON of a header, from `dtype`, `shape` and `data_offsets` by name, without length and padding.

    It has one metadata key only. With more, the reference writer's order is random, and equal files would have
    different bytes; `format` is what Transformers asks for.
    """
    return json.dumps({"__metadata__": {"format": "pt"}, **entries}, separators=(",", ":")).encode()
