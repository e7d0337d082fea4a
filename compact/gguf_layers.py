"""The keys of a GGUF whose layers differ (Gemma 4), as config.json (llama.cpp's `src/models/gemma4.cpp`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compact.errors import DamagedFileError, UnsupportedArchitectureError
from compact.family import Family, default_sliding
from compact.gguf_file import GgufFile

# Keys below `ARCH.`, all UINT32.
SHARED_KV = "attention.shared_kv_layers"
PER_LAYER = "embedding_length_per_layer_input"
KEY, VALUE, ROTARY = "attention.key_length", "attention.value_length", "rope.dimension_count"
LOCAL_KEY, LOCAL_VALUE = "attention.key_length_swa", "attention.value_length_swa"
LOCAL_ROTARY = "rope.dimension_count_swa"
LAYER_KEYS = frozenset({SHARED_KV, PER_LAYER, LOCAL_KEY, LOCAL_VALUE, LOCAL_ROTARY})
_PATTERN = "attention.sliding_window_pattern"
_HINT = "start from the Hugging Face checkpoint of this model"


def layer_settings(file: GgufFile, family: Family) -> dict[str, Any]:
    """What config.json says of the layers.

    Raises:
        DamagedFileError: a key is missing or does not fit the layers.
        UnsupportedArchitectureError: sizes that config.json of this layout cannot express.
    """
    reader = _Reader(file, family.gguf_arch)
    layers = reader.size("block_count")
    windowed = file.values.get(f"{family.gguf_arch}.{_PATTERN}", default_sliding(family.sliding_pattern or 1, layers))
    known = isinstance(windowed, list) and all(isinstance(window, bool) for window in windowed)
    if not known or len(windowed) != layers or windowed[-1]:
        raise DamagedFileError(f"{file.path}: {_PATTERN} does not fit {layers} layers, of which the last has no window")
    shared = reader.size(SHARED_KV, least=0, default=0)
    if shared >= layers:
        raise DamagedFileError(f"{file.path}: {SHARED_KV} = {shared} of {layers} layers")
    wide, narrow = reader.size(KEY), reader.size(LOCAL_KEY)
    same = ((VALUE, wide), (ROTARY, wide), (LOCAL_VALUE, narrow), (LOCAL_ROTARY, narrow))
    if any(reader.size(key, default=size) != size for key, size in same):
        raise UnsupportedArchitectureError(f"{file.path}: key, value and rotary dimensions differ", _HINT)
    inner = reader.each("feed_forward_length", layers)
    doubled = [inner[0]] * (layers - shared) + [2 * inner[0]] * shared
    if inner not in (doubled, [inner[0]] * layers):
        raise UnsupportedArchitectureError(f"{file.path}: feed_forward_length differs between the layers", _HINT)
    settings: dict[str, Any] = {
        "head_dim": narrow,
        "global_head_dim": wide,
        "intermediate_size": inner[0],
        "use_double_wide_mlp": shared > 0 and inner == doubled,
        "num_kv_shared_layers": shared,
        "hidden_size_per_layer_input": reader.size(PER_LAYER, least=0),
    }
    return settings | _key_value_heads(reader, file, windowed, layers - shared)


def _key_value_heads(reader: _Reader, file: GgufFile, windowed: Sequence[bool], own: int) -> dict[str, Any]:
    """Key-value heads of both kinds of layers, and whether keys are the values too; `own` layers have keys."""
    heads = reader.each("attention.head_count_kv", len(windowed))
    kinds = {window: {h for h, w in zip(heads, windowed, strict=True) if w is window} for window in (True, False)}
    everywhere = [n for n in range(own) if not windowed[n]]
    without = [f"blk.{n}.attn_v.weight" not in file.tensors for n in everywhere]
    if any(len(found) > 1 for found in kinds.values()) or any(without) != all(without):
        raise UnsupportedArchitectureError(f"{file.path}: layers of one kind of attention differ", _HINT)
    (full,) = kinds[False]
    local = next(iter(kinds[True]), full)
    keys_are_values = bool(without) and all(without)
    if local != full and not keys_are_values:
        raise UnsupportedArchitectureError(f"{file.path}: attention.head_count_kv differs between the layers", _HINT)
    settings: dict[str, Any] = {"num_key_value_heads": local, "attention_k_eq_v": keys_are_values}
    return settings | ({"num_global_key_value_heads": full} if keys_are_values else {})


class _Reader:
    """Sizes below `ARCH.`."""

    def __init__(self, file: GgufFile, arch: str) -> None:
        self._file, self._arch = file, arch

    def size(self, key: str, *, least: int = 1, default: int | None = None) -> int:
        """One size. Raises DamagedFileError."""
        return self._checked(key, self._file.values.get(f"{self._arch}.{key}", default), least)

    def each(self, key: str, layers: int) -> list[int]:
        """A size for every layer, from a list or one number. Raises DamagedFileError."""
        value = self._file.values.get(f"{self._arch}.{key}")
        every = value if isinstance(value, list) else [value] * layers
        if len(every) != layers:
            raise DamagedFileError(f"{self._file.path}: {key} has {len(every)} sizes for {layers} layers")
        return [self._checked(key, each, 1) for each in every]

    def _checked(self, key: str, value: Any, least: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 1 << 24:
            raise DamagedFileError(f"{self._file.path}: {key} = {str(value)[:60]} is not a size that fits")
        return value
