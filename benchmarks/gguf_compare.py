"""Two GGUF files compared key by key and tensor by tensor, read without the code under test."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

_COMPARED_GENERAL = ("general.architecture", "general.type", "general.file_type", "general.quantization_version",
                     "general.alignment", "general.sampling.")  # fmt: skip
_MAY_BE_OURS_ALONE = (
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.add_eos_token",
    "compact.prefix_token_id",
)
_SCALAR_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


@dataclass
class RawGguf:
    """Keys with the raw bytes of type and value; tensors with shape, type, and offset and number of their bytes."""

    data: np.memmap[Any, np.dtype[np.uint8]]
    keys: dict[str, bytes] = field(default_factory=dict)
    tensors: dict[str, tuple[tuple[int, ...], int, int, int]] = field(default_factory=dict)


def read_raw(path: Path) -> RawGguf:
    """Read a file that one of the two programs has just written."""
    import gguf

    data = np.memmap(path, dtype=np.uint8, mode="r")
    head = data.data
    result = RawGguf(data)
    magic, _, n_tensors, n_keys = struct.unpack_from("<4sIQQ", head, 0)
    assert magic == b"GGUF", path
    at = 24

    def text() -> str:
        nonlocal at
        (length,) = struct.unpack_from("<Q", head, at)
        at += 8 + length
        return bytes(head[at - length : at]).decode()

    def skip(kind: int) -> None:
        nonlocal at
        if kind == 8:
            text()
        elif kind == 9:
            inner, length = struct.unpack_from("<IQ", head, at)
            at += 12
            if inner in _SCALAR_SIZES:
                at += _SCALAR_SIZES[inner] * length
            else:
                for _ in range(length):
                    skip(inner)
        else:
            at += _SCALAR_SIZES[kind]

    for _ in range(n_keys):
        key = text()
        start = at
        (kind,) = struct.unpack_from("<I", head, at)
        at += 4
        skip(kind)
        result.keys[key] = bytes(head[start:at])
    rows = []
    for _ in range(n_tensors):
        name = text()
        (n_dims,) = struct.unpack_from("<I", head, at)
        dims = struct.unpack_from(f"<{n_dims}Q", head, at + 4)
        kind, offset = struct.unpack_from("<IQ", head, at + 4 + 8 * n_dims)
        at += 4 + 8 * n_dims + 12
        rows.append((name, dims, kind, offset))
    at += -at % 32
    for name, dims, kind, offset in rows:
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        result.tensors[name] = (dims, kind, at + offset, int(np.prod(dims)) // block * size)
    return result


def compare(ours: Path, theirs: Path) -> tuple[list[str], list[str], int, int]:
    """Differences, notes, and the numbers of keys and tensors compared.

    Descriptive keys of `general.*` are not compared.
    """
    a, b = read_raw(ours), read_raw(theirs)
    differences, notes = [], []
    keys = 0
    for key in sorted(a.keys.keys() | b.keys.keys()):
        if key.startswith("general.") and not key.startswith(_COMPARED_GENERAL):
            continue
        keys += 1
        if a.keys.get(key) == b.keys.get(key):
            continue
        if key == "tokenizer.ggml.pre" and _alike(a.keys.get(key), b.keys.get(key)):
            notes.append(
                f"{key} is {_text(a.keys[key])!r}, llama.cpp's {_text(b.keys[key])!r}: llama.cpp treats both alike"
            )
        elif key not in b.keys and key in _MAY_BE_OURS_ALONE:
            value = int.from_bytes(a.keys[key][4:], "little")  # the type comes first
            notes.append(f"{key} = {bool(value) if '.add_' in key else value} is ours alone")
        else:
            differences.append(f"key {key}: ours {_short(a.keys.get(key))}, llama.cpp {_short(b.keys.get(key))}")
    for name in sorted(a.tensors.keys() | b.tensors.keys()):
        x, y = a.tensors.get(name), b.tensors.get(name)
        if x is None or y is None or x[:2] != y[:2] or x[3] != y[3]:
            differences.append(f"tensor {name}: ours {x and x[:2]}, llama.cpp {y and y[:2]}")
        elif not np.array_equal(a.data[x[2] : x[2] + x[3]], b.data[y[2] : y[2] + y[3]]):
            differences.append(f"tensor {name}: bytes differ")
    return differences, notes, keys, len(a.tensors)


def _text(raw: bytes) -> str:
    """A string value: type, length, text."""
    return raw[12:].decode()


def _alike(ours: bytes | None, theirs: bytes | None) -> bool:
    """Whether two names of a pre-tokenizer mean the same to llama.cpp (`compact.vocabulary.pretokenizers`)."""
    from compact.base.errors import UnsupportedTokenizerError
    from compact.vocabulary.pretokenizers import find

    if ours is None or theirs is None:
        return False
    try:
        return find(_text(ours)) is find(_text(theirs))
    except UnsupportedTokenizerError:
        return False


def _short(raw: bytes | None) -> str:
    return "nothing" if raw is None else f"{raw[:24].hex()} ({len(raw)} bytes)"
