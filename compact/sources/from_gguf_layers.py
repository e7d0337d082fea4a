"""Read config.json settings from a GGUF whose layers differ (Gemma 4; llama.cpp's `src/models/gemma4.cpp`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compact.architectures.family import Family, default_sliding
from compact.base.errors import DamagedFileError, UnsupportedArchitectureError
from compact.checkpoints.gguf_file import GgufFile

# Keys under `ARCH.`, all UINT32.
SHARED_KV = "attention.shared_kv_layers"
PER_LAYER = "embedding_length_per_layer_input"
KEY, VALUE, ROTARY = "attention.key_length", "attention.value_length", "rope.dimension_count"
LOCAL_KEY, LOCAL_VALUE = "attention.key_length_swa", "attention.value_length_swa"
LOCAL_ROTARY = "rope.dimension_count_swa"
LAYER_KEYS = frozenset({SHARED_KV, PER_LAYER, LOCAL_KEY, LOCAL_VALUE, LOCAL_ROTARY})
_PATTERN = "attention.sliding_window_pattern"
_HINT = "start from the Hugging Face checkpoint of this model"


def layer_settings(file: GgufFile, family: Family) -> dict[str, Any]:
    """Return the settings of config.json that describe the layers.

    Raises:
        DamagedFileError: a key is missing or does not fit the layers.
        UnsupportedArchitectureError: config.json of this layout cannot express the sizes.
    """
    reader = _Reader(file, family.gguf_arch)
    layers = reader.size("block_count")
    windowed = file.values.get(f"{family.gguf_arch}.{_PATTERN}", default_sliding(family.sliding_pattern or 1, layers))
    known = isinstance(windowed, list) and all(isinstance(window, bool) for window in windowed)
    if not known or len(windowed) != layers or windowed[-1]:
        raise DamagedFileError(
            f"{file.path}: {_PATTERN} must have one entry for each of the {layers} layers, and no window in the last"
        )
    shared = reader.size(SHARED_KV, least=0, default=0)
    if shared >= layers:
        raise DamagedFileError(f"{file.path}: {SHARED_KV} = {shared}, but there are only {layers} layers")
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
    """Settings for key-value heads, and whether full-attention layers use the keys as values.

    Args:
        reader: reads sizes from `file`.
        file: the GGUF's head.
        windowed: for every layer, whether it has a sliding window.
        own: the number of layers with their own keys and values. The later layers share them.
    """
    heads = reader.each("attention.head_count_kv", len(windowed))
    kinds = {window: {h for h, w in zip(heads, windowed, strict=True) if w is window} for window in (True, False)}
    everywhere = [n for n in range(own) if not windowed[n]]
    without = [f"blk.{n}.attn_v.weight" not in file.tensors for n in everywhere]
    if any(len(found) > 1 for found in kinds.values()) or any(without) != all(without):
        raise UnsupportedArchitectureError(f"{file.path}: layers with the same kind of attention differ", _HINT)
    (full,) = kinds[False]
    local = next(iter(kinds[True]), full)
    keys_are_values = bool(without) and all(without)
    if local != full and not keys_are_values:
        raise UnsupportedArchitectureError(f"{file.path}: attention.head_count_kv differs between the layers", _HINT)
    settings: dict[str, Any] = {"num_key_value_heads": local, "attention_k_eq_v": keys_are_values}
    return settings | ({"num_global_key_value_heads": full} if keys_are_values else {})


class _Reader:
    """Reads sizes under `ARCH.`."""

    def __init__(self, file: GgufFile, arch: str) -> None:
        self._file, self._arch = file, arch

    def size(self, key: str, *, least: int = 1, default: int | None = None) -> int:
        """Return one size. Raises DamagedFileError if it is missing or out of range."""
        return self._checked(key, self._file.values.get(f"{self._arch}.{key}", default), least)

    def each(self, key: str, layers: int) -> list[int]:
        """Return a size for every layer. The key has a list, or one number for all. Raises DamagedFileError."""
        value = self._file.values.get(f"{self._arch}.{key}")
        every = value if isinstance(value, list) else [value] * layers
        if len(every) != layers:
            raise DamagedFileError(f"{self._file.path}: {key} has {len(every)} sizes for {layers} layers")
        return [self._checked(key, each, 1) for each in every]

    def _checked(self, key: str, value: Any, least: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 1 << 24:
            raise DamagedFileError(f"{self._file.path}: {key} = {str(value)[:60]} is not a valid size")
        return value
