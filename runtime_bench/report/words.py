"""Values as text, the same in every form of the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NONE = "–"


def figure(value: float | None, unit: str) -> str:
    """Return a value with its unit: `115.5 MB`, `0.82 s`, `82.1 tokens/s`. A dash if it is missing."""
    if value is None:
        return NONE
    if unit == "bytes":
        scale, name = (1e9, "GB") if value >= 1e9 else (1e6, "MB") if value >= 1e5 else (1e3, "kB")
        return f"{value / scale:.{2 if name == 'GB' else 1}f} {name}"
    if unit == "bits/byte":
        return f"{value:.3f}"
    return f"{digits(value)} {unit}"


def digits(value: float) -> str:
    """Return three significant digits without an exponent for usual values: 1,240, 82.1, 0.0412."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 100:
        return f"{value:.0f}"
    if size >= 10:
        return f"{value:.1f}"
    if size >= 1:
        return f"{value:.2f}"
    if size >= 0.1:
        return f"{value:.3f}"
    return f"{value:.3g}"


def ratio_words(ratio: Mapping[str, Any] | None) -> str:
    """Return `1.22 [1.20, 1.25]`, `0.80 (exact)`, `1.22 (n = 4)`, or a dash."""
    if ratio is None:
        return NONE
    low, high = ratio["low"], ratio["high"]
    if ratio["exact"]:
        return f"{times(ratio['median'])} (exact)"
    if low is None or high is None:
        return f"{times(ratio['median'])} (n = {ratio['n']})"
    # Enough decimals to distinguish the median and the ends of the interval from each other and from 1.
    decimals = max(_decimals(ratio["median"]), _decimals(low), _decimals(high))
    if decimals == 2 and len({round(value, 2) for value in (low, ratio["median"], high)}) < 3:
        decimals = 3
    return f"{ratio['median']:,.{decimals}f} [{low:,.{decimals}f}, {high:,.{decimals}f}]"


def times(value: float) -> str:
    """Return a ratio with two decimals, or three if two would round to 1 (0.996 is not 1.00)."""
    return f"{value:,.{_decimals(value)}f}"


def _decimals(value: float) -> int:
    if value >= 100:
        return 0
    if value >= 10:
        return 1
    return 3 if value < 0.1 or 0 < abs(value - 1) < 0.05 else 2


def counted(number: int, noun: str) -> str:
    """Return `1 pair`, `10 pairs`, `1,024 characters`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def plain(value: Any) -> str:
    """Return a value of the facts of device, engine or settings, on one line."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return digits(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(item) for item in value)
    return " ".join(str(value).split())


def fact(key: str, value: Any) -> str:
    """Return a fact whose name contains its unit: `memory_bytes` in MB or GB."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and key.endswith("_bytes"):
        return figure(float(value), "bytes")
    if number and key.endswith(("_hz", "_HZ")):
        return f"{value / 1e9:.2f} GHz"
    return plain(value)


def fact_name(key: str) -> str:
    """Return the name without its unit: `memory_bytes` -> `memory`, `kv_type` -> `kv type`."""
    for unit in ("_bytes", "_hz"):
        key = key.removesuffix(unit)
    return " ".join(key.replace("_", " ").split())


def fact_line(facts: Mapping[str, Any]) -> str:
    """Return all known facts on one line."""
    return ", ".join(
        f"{fact_name(key)} {fact(key, value)}" for key, value in facts.items() if value not in (None, "", [], {})
    )


def device_name(document: Mapping[str, Any]) -> str:
    """Name of the device for a heading."""
    for key in ("model", "name", "product", "board", "cpu"):
        value = document["device"].get(key)
        if isinstance(value, str) and value.strip():
            return " ".join(value.split())
    return str(document["device_spec"])


def engine_name(document: Mapping[str, Any]) -> str:
    """Name and version of the engine."""
    engine = document["engine"]
    return " ".join(plain(engine[key]) for key in ("name", "version") if engine.get(key)) or "unknown engine"


def subject_name(document: Mapping[str, Any]) -> str:
    """Name and type of the pruned artifact."""
    subject = document["subjects"]["pruned"]
    name, quant = subject["name"], subject["quant"]
    short = name.removesuffix(".gguf")
    if quant and short.lower().endswith(quant.lower()):
        short = short[: -len(quant)].rstrip("-_. ") or short
    return " ".join(f"{short} {quant or ''}".split())


def budget_name(name: str) -> str:
    """Return a budget's name for a reader."""
    return {"ttft": "TTFT"}.get(name, name)
