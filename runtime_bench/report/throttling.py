"""Detect whether the device throttled during the measurement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from runtime_bench.measuring.statistics import median
from runtime_bench.records import Sample, Side, Thermal

# On all known cores, the steps of a frequency governor are larger than 5%. A drop by 10% is a lower step, not jitter.
_LEAST_SHARE = 0.9
_SIDES_DIFFER = 0.05
# Without frequencies, a rise of this many degrees is reported. By itself it does not show a lower speed.
_WARM = 10.0

RULE = (
    "warns if the median frequency of the fastest core is below 0.9 times that before a record, if it is in the last "
    "third of the run below 0.9 times that of the first third, or if it differs by more than 5% between the sides"
)


def throttling(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return frequencies, temperatures and a verdict.

    Frequencies are those of the fastest core, in Hz. Temperatures are those of the hottest sensor, in degrees Celsius.

    Returns:
        `verdict` is `none seen`, `warning` or `unknown`. `reasons` has the reasons, one line each.
    """
    ordered = sorted(samples, key=lambda sample: (sample.pair, sample.order))
    before = [_frequency(sample.thermal.get("before")) for sample in ordered]
    after = [_frequency(sample.thermal.get("after")) for sample in ordered]
    seen = [value for value in after if value is not None]
    result: dict[str, Any] = {
        "frequency_before_hz": _median(before),
        "frequency_after_hz": _median(after),
        "frequency_after_by_side_hz": {
            side: _median([value for sample, value in zip(ordered, after, strict=True) if sample.side == side])
            for side in ("pruned", "baseline")
        },
        **_temperatures(ordered),
        "rule": RULE,
    }
    reasons = _reasons(result, seen)
    change = result["temperature_change_c"]
    if reasons:
        verdict = "warning"
    elif seen:
        verdict = "none seen"
    else:
        verdict = "unknown"
        reasons.append("the system does not report core frequencies")
        if change is not None and change >= _WARM:
            reasons.append(f"a record warmed the hottest sensor by {change:.0f} °C (median)")
    return result | {"verdict": verdict, "reasons": reasons}


def _reasons(result: dict[str, Any], after: list[float]) -> list[str]:
    reasons: list[str] = []
    first, last = result["frequency_before_hz"], result["frequency_after_hz"]
    if first is not None and last is not None and last < _LEAST_SHARE * first:
        reasons.append(f"the fastest core fell from {_ghz(first)} before a record to {_ghz(last)} after it (medians)")
    third = len(after) // 3
    if third:
        early, late = _median(after[:third]), _median(after[-third:])
        if early is not None and late is not None and late < _LEAST_SHARE * early:
            reasons.append(
                f"the fastest core fell from {_ghz(early)} at the start of the run to {_ghz(late)} at its end"
            )
    sides: dict[Side, float | None] = result["frequency_after_by_side_hz"]
    pruned, baseline = sides["pruned"], sides["baseline"]
    if pruned is not None and baseline is not None and abs(pruned - baseline) > _SIDES_DIFFER * max(pruned, baseline):
        reasons.append(f"the sides ran at different frequencies: pruned {_ghz(pruned)}, baseline {_ghz(baseline)}")
    return reasons


def _temperatures(ordered: Sequence[Sample]) -> dict[str, float | None]:
    pairs = [
        (_temperature(sample.thermal.get("before")), _temperature(sample.thermal.get("after"))) for sample in ordered
    ]
    seen = [value for pair in pairs for value in pair if value is not None]
    return {
        "temperature_before_c": _median([first for first, _ in pairs]),
        "temperature_after_c": _median([last for _, last in pairs]),
        "temperature_change_c": _median(
            [last - first for first, last in pairs if first is not None and last is not None]
        ),
        "temperature_max_c": max(seen, default=None),
    }


def _frequency(reading: Thermal | None) -> float | None:
    # Use the fastest core, because idle cores reduce their clock, and throttling limits all cores.
    values = [] if reading is None else [value for value in reading.frequencies if value > 0]
    return float(max(values)) if values else None


def _temperature(reading: Thermal | None) -> float | None:
    values = [] if reading is None else [float(value) for value in reading.temperatures.values()]
    return max((value for value in values if math.isfinite(value)), default=None)


def _median(values: Sequence[float | None]) -> float | None:
    return median(value for value in values if value is not None)


def _ghz(value: float) -> str:
    return f"{value / 1e9:.2f} GHz"
