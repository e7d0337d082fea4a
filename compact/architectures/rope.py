"""Read rotary position settings from config.json, and compute or recognise frequency factors of GGUF.

config.json has two spellings. Transformers 4 writes `rope_theta` and `rope_scaling` at the top level, Transformers 5
writes one `rope_parameters` object.

GGUF has keys for linear and YaRN scaling (GGUF spec, "rope.scaling.*"). For `llama3` and `proportional` it has no keys,
only a tensor of frequency factors, `rope_freqs.weight`. The settings must be recognised from the factors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from compact.base.errors import DamagedFileError, UnsupportedArchitectureError
from compact.base.numbers import number

DEFAULT_THETA = 10000.0
# llama.cpp divides each frequency by its factor. Dividing by this one leaves no rotation.
_NO_ROTATION = 1e30
_LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
# Torch versions differ in the last bit of a power. Different settings differ by far more.
_TOLERANCE = 1e-5
# Next steps of messages.
_DAMAGED = "correct the value, or download the model again"
_UNSUPPORTED = "docs/families.md lists the supported models"


@dataclass(frozen=True)
class Rope:
    """Rotary settings of one model.

    Attributes:
        kind: `default`, `linear`, `yarn`, `llama3` or `proportional`.
        theta: base of the frequencies.
        scaling: config.json name -> number, for the scaling. Empty for `default`.
        local_theta: base of the frequencies in sliding-window layers, if it is separate (Gemma 3). The scaling then
            only applies to the other layers.
        share: the share of every head that has rotary positions, 0 to 1.
    """

    kind: str
    theta: float
    scaling: Mapping[str, float] = field(default_factory=dict)
    local_theta: float | None = None
    share: float = 1.0


def read_rope(
    config: Mapping[str, Any],
    where: str,
    *,
    theta: float = DEFAULT_THETA,
    local_theta: float | None = None,
    rotary_share: float | None = None,
    partial_rotary: float | None = None,
) -> Rope:
    """Read the rotary settings of a config.json, in either spelling.

    Args:
        config: the parsed file.
        where: the file's path, for messages.
        theta: default base of the frequencies.
        local_theta: default base in sliding-window layers. None for a layout whose layers share one base.
        rotary_share: default share of a head with rotary positions, for a layout with rope type `proportional`. None
            for other layouts.
        partial_rotary: default share of every head with rotary positions. None for a layout that rotates whole heads.

    Raises:
        UnsupportedArchitectureError: GGUF cannot express the settings for this layout (`dynamic`, `longrope`, a partial
            rotary dimension, settings per kind of attention).
        DamagedFileError: a value is missing or not a positive number.
    """
    # If a file has both spellings, Transformers prefers the older one.
    older, newer = config.get("rope_scaling") or {}, config.get("rope_parameters") or {}
    if not isinstance(older, Mapping) or not isinstance(newer, Mapping):
        raise DamagedFileError(f"{where}: rope settings are not an object", _DAMAGED)
    raw = older or newer
    if rotary_share is not None:
        return _read_proportional(older, newer, where, theta, local_theta, rotary_share)
    if local_theta is not None:
        raw, local_theta = _by_attention(older, newer, config, local_theta, where)
    theta = number(raw.get("rope_theta", config.get("rope_theta", theta)), "rope_theta", where, positive=True)
    kind = raw.get("rope_type", raw.get("type", "default"))
    if any(isinstance(value, Mapping) for value in raw.values()):
        raise UnsupportedArchitectureError(
            f"{where}: rope settings per kind of attention are not supported", _UNSUPPORTED
        )
    partial = raw.get("partial_rotary_factor", config.get("partial_rotary_factor", partial_rotary))
    if partial_rotary is not None and kind in ("default", None):
        share = number(partial, "partial_rotary_factor", where, positive=True)
        if share > 1:
            raise DamagedFileError(f"{where}: partial_rotary_factor = {share!r} is above 1", _DAMAGED)
        return Rope("default", theta, share=share)
    if partial not in (None, 1, 1.0):
        raise UnsupportedArchitectureError(
            f"{where}: partial_rotary_factor = {partial!r} is not supported", _UNSUPPORTED
        )
    if kind in ("default", None):
        return Rope("default", theta, local_theta=local_theta)
    if kind not in ("linear", "yarn", "llama3"):
        raise UnsupportedArchitectureError(
            f"{where}: rope scaling {str(kind)[:40]!r} cannot be stored in a GGUF of this layout",
            "supported: default, linear, yarn, llama3",
        )
    scaling = {
        key: number(value, key, where, positive=True)
        for key, value in raw.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and key != "rope_theta"
    }
    if kind != "linear" and "original_max_position_embeddings" not in scaling:
        original = config.get("original_max_position_embeddings") or config.get("max_position_embeddings")
        key = "original_max_position_embeddings"
        scaling[key] = number(original, key, where, positive=True)
    for key in _LLAMA3_KEYS if kind == "llama3" else ("factor",):
        if key not in scaling:
            raise DamagedFileError(f"{where}: rope scaling {kind!r} needs {key}", _DAMAGED)
    if kind == "llama3":
        if scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
            raise DamagedFileError(f"{where}: high_freq_factor must be greater than low_freq_factor", _DAMAGED)
        scaling = {key: scaling[key] for key in _LLAMA3_KEYS}
    elif kind == "yarn":
        _refuse_other_yarn(raw, scaling, where)
    return Rope(kind, theta, scaling, local_theta)


def _read_proportional(
    older: Mapping[str, Any],
    newer: Mapping[str, Any],
    where: str,
    theta: float,
    local_theta: float | None,
    rotary_share: float,
) -> Rope:
    """Read the settings of Gemma 4: with full attention a share of each head rotates, otherwise the whole head.

    As in Transformers, the settings come only from `rope_parameters`, or from the layout's defaults without it.
    """
    usual = {"rope_type": "proportional", "rope_theta": theta, "partial_rotary_factor": rotary_share}
    full = newer.get("full_attention") if newer else usual
    local = newer.get("sliding_attention") if newer else {"rope_theta": local_theta}
    if older or not isinstance(full, Mapping) or not isinstance(local, Mapping):
        raise UnsupportedArchitectureError(
            f"{where}: rope settings must be in full_attention and sliding_attention of rope_parameters", _UNSUPPORTED
        )
    kinds = (full.get("rope_type", "default"), local.get("rope_type", "default"))
    factor = full.get("factor", 1.0)
    if kinds != ("proportional", "default") or factor != 1.0:
        with_factor = "" if factor == 1.0 else f" with factor {factor!r}"
        raise UnsupportedArchitectureError(
            f"{where}: rope types {kinds[0]!r}{with_factor} and {kinds[1]!r} cannot be stored in a GGUF of this layout",
            "llama.cpp supports 'proportional' without a factor, and 'default' in sliding-window layers",
        )
    share = number(full.get("partial_rotary_factor", 1.0), "partial_rotary_factor", where, positive=True)
    if share > 1:
        raise DamagedFileError(f"{where}: partial_rotary_factor = {share!r} is above 1", _DAMAGED)
    bases = [number(part.get("rope_theta"), "rope_theta", where, positive=True) for part in (full, local)]
    return Rope("proportional", bases[0], {"partial_rotary_factor": share}, bases[1])


def frequency_factors(rope: Rope, head_dim: int) -> npt.NDArray[np.float32] | None:
    """Return `rope_freqs.weight`, the divisor of each frequency, or None if the rope settings need none.

    Args:
        rope: the rotary settings.
        head_dim: width of an attention head.

    Returns:
        float32 [head_dim / 2].
    """
    if rope.kind == "llama3":
        return llama3_factors(rope, head_dim)
    if rope.kind != "proportional":
        return None
    rotated = int(rope.scaling["partial_rotary_factor"] * head_dim // 2)
    return np.array([1.0] * rotated + [_NO_ROTATION] * (head_dim // 2 - rotated), dtype=np.float32)


def recognise_proportional(factors: npt.NDArray[np.float32], theta: float, local_theta: float, where: str) -> Rope:
    """Return the `proportional` settings that give these frequency factors.

    Args:
        factors: `rope_freqs.weight`, float32 [head_dim / 2].
        theta: base of the frequencies.
        local_theta: base of the frequencies in sliding-window layers.
        where: the file's path, for messages.

    Raises:
        UnsupportedArchitectureError: the factors do not describe heads with partial rotary positions.
    """
    rotated = int((factors == 1.0).sum())
    rope = Rope("proportional", theta, {"partial_rotary_factor": rotated / max(1, factors.size)}, local_theta)
    if not rotated or not np.array_equal(frequency_factors(rope, 2 * factors.size), factors):  # type: ignore[arg-type]
        raise UnsupportedArchitectureError(
            f"{where}: rope_freqs.weight does not describe heads with partial rotary positions",
            "start from the Hugging Face checkpoint of this model",
        )
    return rope


def yarn_attention_factor(factor: float) -> float:
    """Return YaRN's default factor for cos and sin (arXiv 2309.00071, section 3.4)."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0


def _refuse_other_yarn(raw: Mapping[str, Any], scaling: Mapping[str, float], where: str) -> None:
    """Reject unsupported YaRN settings: llama.cpp always truncates, and always uses the default factor."""
    usual = yarn_attention_factor(scaling["factor"])
    wrong = [key for key in ("mscale", "mscale_all_dim") if raw.get(key)]
    if abs(scaling.get("attention_factor", usual) - usual) > 1e-4:
        wrong.append("attention_factor")
    if raw.get("truncate") is False:
        wrong.append("truncate")
    if scaling.get("extrapolation_factor", 1.0) != 1.0:
        wrong.append("extrapolation_factor")
    if wrong:
        raise UnsupportedArchitectureError(
            f"{where}: YaRN with {wrong[0]} = {raw[wrong[0]]!r} cannot be stored in a GGUF, because "
            "llama.cpp uses a fixed value",
            _UNSUPPORTED,
        )


def _by_attention(
    older: Mapping[str, Any], newer: Mapping[str, Any], config: Mapping[str, Any], local_theta: float, where: str
) -> tuple[Mapping[str, Any], float]:
    """Return the settings of the layers with full attention, and the base of the sliding-window layers.

    Transformers 4 has `rope_local_base_freq` in addition to `rope_theta` and `rope_scaling`. Transformers 5 has one
    object for each kind of attention, and `rope_scaling` overrides values for full attention. Other settings in
    `rope_parameters` are ignored.
    """
    full, local = newer.get("full_attention") or {}, newer.get("sliding_attention") or {}
    if not isinstance(full, Mapping) or not isinstance(local, Mapping):
        raise DamagedFileError(f"{where}: rope settings for a kind of attention are not an object", _DAMAGED)
    if local.get("rope_type", "default") not in ("default", None):
        raise UnsupportedArchitectureError(
            f"{where}: scaled rope in sliding-window layers cannot be stored in a GGUF", _UNSUPPORTED
        )
    base = local.get("rope_theta", config.get("rope_local_base_freq", local_theta))
    return {**full, **older}, number(base, "rope_local_base_freq", where, positive=True)


def llama3_factors(rope: Rope, head_dim: int) -> npt.NDArray[np.float32]:
    """Return `rope_freqs.weight` of a `llama3` scaling: the divisor of each frequency.

    Every step uses float32 in torch, as the code of the models does. The factors in the middle band come from a power,
    and its last bit differs between libraries.

    Returns:
        float32 [head_dim / 2].
    """
    import torch

    factor = rope.scaling["factor"]
    low, high = rope.scaling["low_freq_factor"], rope.scaling["high_freq_factor"]
    original = rope.scaling["original_max_position_embeddings"]
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim  # [head_dim / 2]
    wavelengths = 2 * math.pi / (1.0 / (rope.theta**exponents))
    # Between the two bands, the weight of the unscaled frequency rises linearly from 0 to 1.
    smooth = (original / wavelengths - low) / (high - low)
    factors = 1 / ((1 - smooth) / factor + smooth)
    factors[wavelengths < original / high] = 1.0
    factors[wavelengths > original / low] = factor
    return factors.numpy()


def _llama3_candidates(factor: float, theta: float) -> Iterator[Rope]:
    # The factors only depend on the ratios original/low and original/high, so low = 1 is enough.
    for high in (4.0, 2.0, 3.0, 6.0, 8.0, 16.0, 32.0):
        for exponent in range(13, 19):
            for original in (1 << exponent, 1 << (25 - exponent)):
                scaling = {
                    "factor": factor,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": high,
                    "original_max_position_embeddings": original,
                }
                yield Rope("llama3", theta, scaling)


def recognise_llama3(factors: npt.NDArray[np.float32], theta: float, where: str) -> Rope:
    """Return the `llama3` settings that give these frequency factors.

    Args:
        factors: `rope_freqs.weight`, float32 [head_dim / 2].
        theta: base of the frequencies.
        where: the file's path, for messages.

    Raises:
        UnsupportedArchitectureError: no known settings give these factors.
    """
    if factors.size and np.isfinite(factors).all() and factors.max() >= 1.0:
        for rope in _llama3_candidates(float(factors.max()), theta):
            guess = llama3_factors(rope, 2 * factors.size)
            if np.allclose(guess, factors, rtol=_TOLERANCE, atol=0.0):
                return rope
    raise UnsupportedArchitectureError(
        f"{where}: rope_freqs.weight does not match any known llama3 setting",
        "start from the Hugging Face checkpoint of this model",
    )
