"""Rotary position settings: one reading of config.json's two spellings, and the `llama3` frequency factors.

Transformers 4 writes `rope_theta` and `rope_scaling` at the top of config.json, Transformers 5 one `rope_parameters`
object. GGUF has keys for linear and YaRN scaling (GGUF spec, "rope.scaling.*"); for `llama3` it holds a tensor of
frequency factors, `rope_freqs.weight`, and no key, so reading a GGUF back means recognising the settings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from compact.errors import DamagedFileError, UnsupportedArchitectureError
from compact.numbers import number

DEFAULT_THETA = 10000.0
# llama.cpp divides a frequency by its factor: by this one it becomes no rotation.
_NO_ROTATION = 1e30
_LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
# Torch versions differ in the last bit of a power; two different settings differ by far more.
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Rope:
    """Rotary settings of one model.

    Attributes:
        kind: `default`, `linear`, `yarn`, `llama3` or `proportional`.
        theta: base of the frequencies.
        scaling: the numbers of the scaling, by their config.json names (empty for `default`).
        local_theta: base of the frequencies in sliding-window layers where those have their own (Gemma 3); the
            scaling is then of the other layers alone.
        share: of every head, what has rotary positions.
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
    """The rotary settings of a config.json in either spelling.

    Args:
        config: the parsed file.
        where: its path, for messages.
        theta: base of the frequencies where the file has none.
        local_theta: that of sliding-window layers; None for a layout whose layers share one.
        rotary_share: for a layout whose rope type is `proportional`, the share of a head where the file has no
            settings at all; None for other layouts.
        partial_rotary: the share of every head where the file says none; None for a layout of whole heads.

    Raises:
        UnsupportedArchitectureError: a kind of scaling that GGUF cannot hold for these layouts (`dynamic`,
            `longrope`, a partial rotary dimension, settings per attention kind).
        DamagedFileError: a value is not a positive number.
    """
    # Transformers lets the older spelling win where a file has both.
    older, newer = config.get("rope_scaling") or {}, config.get("rope_parameters") or {}
    if not isinstance(older, Mapping) or not isinstance(newer, Mapping):
        raise DamagedFileError(f"{where}: rope settings are not an object")
    raw = older or newer
    if rotary_share is not None:
        return _read_proportional(older, newer, where, theta, local_theta, rotary_share)
    if local_theta is not None:
        raw, local_theta = _by_attention(older, newer, config, local_theta, where)
    theta = number(raw.get("rope_theta", config.get("rope_theta", theta)), "rope_theta", where, positive=True)
    kind = raw.get("rope_type", raw.get("type", "default"))
    if any(isinstance(value, Mapping) for value in raw.values()):
        raise UnsupportedArchitectureError(f"{where}: rope settings per kind of attention are not supported")
    partial = raw.get("partial_rotary_factor", config.get("partial_rotary_factor", partial_rotary))
    if partial_rotary is not None and kind in ("default", None):
        share = number(partial, "partial_rotary_factor", where, positive=True)
        if share > 1:
            raise DamagedFileError(f"{where}: partial_rotary_factor = {share!r} is more than the whole head")
        return Rope("default", theta, share=share)
    if partial not in (None, 1, 1.0):
        raise UnsupportedArchitectureError(f"{where}: partial_rotary_factor = {partial!r} is not supported")
    if kind in ("default", None):
        return Rope("default", theta, local_theta=local_theta)
    if kind not in ("linear", "yarn", "llama3"):
        raise UnsupportedArchitectureError(
            f"{where}: rope scaling {str(kind)[:40]!r} cannot be kept in a GGUF of this layout",
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
            raise DamagedFileError(f"{where}: rope scaling {kind!r} without {key}")
    if kind == "llama3":
        if scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
            raise DamagedFileError(f"{where}: high_freq_factor is not above low_freq_factor")
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
    """Gemma 4: a share of each head has rotary positions where a layer attends to everything, elsewhere all of it.

    Transformers reads `rope_parameters` alone, as it is; without it, the layout's settings count.
    """
    usual = {"rope_type": "proportional", "rope_theta": theta, "partial_rotary_factor": rotary_share}
    full = newer.get("full_attention") if newer else usual
    local = newer.get("sliding_attention") if newer else {"rope_theta": local_theta}
    if older or not isinstance(full, Mapping) or not isinstance(local, Mapping):
        raise UnsupportedArchitectureError(
            f"{where}: rope settings are not the two of rope_parameters, full_attention and sliding_attention"
        )
    kinds = (full.get("rope_type", "default"), local.get("rope_type", "default"))
    factor = full.get("factor", 1.0)
    if kinds != ("proportional", "default") or factor != 1.0:
        with_factor = "" if factor == 1.0 else f" with factor {factor!r}"
        raise UnsupportedArchitectureError(
            f"{where}: rope types {kinds[0]!r}{with_factor} and {kinds[1]!r} cannot be kept in a GGUF of this layout",
            "llama.cpp computes 'proportional' without a factor, and 'default' in sliding-window layers",
        )
    share = number(full.get("partial_rotary_factor", 1.0), "partial_rotary_factor", where, positive=True)
    if share > 1:
        raise DamagedFileError(f"{where}: partial_rotary_factor = {share!r} is more than the whole head")
    bases = [number(part.get("rope_theta"), "rope_theta", where, positive=True) for part in (full, local)]
    return Rope("proportional", bases[0], {"partial_rotary_factor": share}, bases[1])


def frequency_factors(rope: Rope, head_dim: int) -> npt.NDArray[np.float32] | None:
    """`rope_freqs.weight`, what each frequency is divided by, shape [head_dim / 2]; None for a rope without it."""
    if rope.kind == "llama3":
        return llama3_factors(rope, head_dim)
    if rope.kind != "proportional":
        return None
    rotated = int(rope.scaling["partial_rotary_factor"] * head_dim // 2)
    return np.array([1.0] * rotated + [_NO_ROTATION] * (head_dim // 2 - rotated), dtype=np.float32)


def recognise_proportional(factors: npt.NDArray[np.float32], theta: float, local_theta: float, where: str) -> Rope:
    """The share of a head that these frequency factors leave rotating. Raises UnsupportedArchitectureError."""
    rotated = int((factors == 1.0).sum())
    rope = Rope("proportional", theta, {"partial_rotary_factor": rotated / max(1, factors.size)}, local_theta)
    if not rotated or not np.array_equal(frequency_factors(rope, 2 * factors.size), factors):  # type: ignore[arg-type]
        raise UnsupportedArchitectureError(
            f"{where}: rope_freqs.weight does not leave a share of each head without rotation",
            "start from the Hugging Face checkpoint of this model",
        )
    return rope


def yarn_attention_factor(factor: float) -> float:
    """What YaRN multiplies cos and sin by where nothing else is said (arXiv 2309.00071, section 3.4)."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0


def _refuse_other_yarn(raw: Mapping[str, Any], scaling: Mapping[str, float], where: str) -> None:
    """YaRN settings that llama.cpp has no say in: it always truncates, and always takes the usual factor."""
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
            f"{where}: YaRN with {wrong[0]} = {raw[wrong[0]]!r} cannot be kept: llama.cpp computes its own"
        )


def _by_attention(
    older: Mapping[str, Any], newer: Mapping[str, Any], config: Mapping[str, Any], local_theta: float, where: str
) -> tuple[Mapping[str, Any], float]:
    """The settings of the layers that attend to everything, and the base of the sliding-window layers.

    Transformers 4 has `rope_local_base_freq` beside `rope_theta` and `rope_scaling`, Transformers 5 an object for each
    kind of attention, which `rope_scaling` is laid over; settings outside of those two objects count for nothing.
    """
    full, local = newer.get("full_attention") or {}, newer.get("sliding_attention") or {}
    if not isinstance(full, Mapping) or not isinstance(local, Mapping):
        raise DamagedFileError(f"{where}: rope settings of a kind of attention are not an object")
    if local.get("rope_type", "default") not in ("default", None):
        raise UnsupportedArchitectureError(f"{where}: scaled rope in sliding-window layers cannot be kept in a GGUF")
    base = local.get("rope_theta", config.get("rope_local_base_freq", local_theta))
    return {**full, **older}, number(base, "rope_local_base_freq", where, positive=True)


def llama3_factors(rope: Rope, head_dim: int) -> npt.NDArray[np.float32]:
    """`rope_freqs.weight` of a `llama3` scaling: what each frequency is divided by, shape [head_dim / 2].

    Every step is float32 in torch, as in the models' own code: the factors in the middle band come from a power, whose
    last bit differs between libraries.
    """
    import torch

    factor = rope.scaling["factor"]
    low, high = rope.scaling["low_freq_factor"], rope.scaling["high_freq_factor"]
    original = rope.scaling["original_max_position_embeddings"]
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    wavelengths = 2 * math.pi / (1.0 / (rope.theta**exponents))
    # Between the bands the weight of the unscaled frequency rises linearly from 0 to 1.
    smooth = (original / wavelengths - low) / (high - low)
    factors = 1 / ((1 - smooth) / factor + smooth)
    factors[wavelengths < original / high] = 1.0
    factors[wavelengths > original / low] = factor
    return factors.numpy()


def _llama3_candidates(factor: float, theta: float) -> Iterator[Rope]:
    # Only the ratios original/low and original/high reach the factors, so low = 1 loses nothing.
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
    """The `llama3` settings that give these frequency factors.

    Args:
        factors: `rope_freqs.weight`, shape [head_dim / 2].
        theta: base of the frequencies.
        where: the file's path, for the message.

    Raises:
        UnsupportedArchitectureError: no known settings give these factors.
    """
    if factors.size and np.isfinite(factors).all() and factors.max() >= 1.0:
        for rope in _llama3_candidates(float(factors.max()), theta):
            guess = llama3_factors(rope, 2 * factors.size)
            if np.allclose(guess, factors, rtol=_TOLERANCE, atol=0.0):
                return rope
    raise UnsupportedArchitectureError(
        f"{where}: rope_freqs.weight holds frequency factors of no known llama3 setting",
        "start from the Hugging Face checkpoint of this model",
    )
