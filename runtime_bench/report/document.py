"""report.json: the complete report, for CI and for the Markdown and HTML forms.

`report.schema.json` in the same folder is its JSON Schema.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from runtime_bench.measuring.metrics import (
    Metric,
    before_loading,
    characters_per_token,
    definitions,
    inter_token_ms,
    metrics_of,
    private_label,
    subject_metrics,
)
from runtime_bench.measuring.statistics import (
    CONFIDENCE,
    LEAST_PAIRS,
    Ratio,
    exact_ratio,
    median,
    median_interval,
    paired_ratio,
    quantile,
    verdict,
)
from runtime_bench.records import SIDES, Prompt, RunFacts, Sample, Side
from runtime_bench.report.budgets import check_budgets
from runtime_bench.report.headline import summary, title
from runtime_bench.report.published import published
from runtime_bench.report.throttling import throttling

SCHEMA = "compact-edge/bench/1"
NOT_JUDGED = "not judged"
NOT_COMPARED = "not compared"
METHOD = (
    "Ratios are medians of pruned/baseline over pairs. The two sides of a pair ran one after the other in alternating "
    "order, so that slow drift cancels (an even number of pairs balances the order). Intervals enclose the median "
    f"with at least {CONFIDENCE:.0%} (order statistics, the sign test; no distribution is assumed). Fewer than "
    f"{LEAST_PAIRS} pairs give no interval. A difference is called better or worse if the interval does not contain 1. "
    "Of metrics without a true difference, up to one in twenty is called different by chance."
)
_PERCENTS = tuple(range(101))


def make_document(facts: RunFacts, samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the report of a run as plain values, without NaN, infinity and tuples.

    There may be few or no samples. Values that they do not give are left out or null.
    """
    by_side = {side: [sample for sample in samples if sample.side == side] for side in SIDES}
    metrics = _metrics(facts, samples)
    pruned = {metric["key"]: metric["pruned"]["median"] for metric in metrics if metric["pruned"] is not None}
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "title": "",
        "summary": "",
        "status": facts.status,
        "reason": facts.reason,
        "unlike": list(facts.unlike),
        "emulated": facts.emulated,
        "created": facts.created,
        "tool_version": facts.tool_version,
        "command": facts.command,
        "batch_size": 1,
        "device": published(facts.device),
        "device_spec": facts.device_spec,
        "engine": published(facts.engine),
        "settings": published(facts.settings),
        "subjects": {side: asdict(facts.subjects[side]) for side in SIDES},
        "bits_per_byte_text": facts.bits_per_byte_text,
        "prompts": [_prompt(prompt) for prompt in facts.prompts],
        "depths": facts.depths,
        "reference": {
            "characters": facts.reference_characters,
            "tokens": {side: facts.reference_tokens.get(side) for side in SIDES},
            "characters_per_token": {side: characters_per_token(facts, side) for side in SIDES},
        },
        "pairs": len({sample.pair for sample in by_side["pruned"]} & {sample.pair for sample in by_side["baseline"]}),
        "records": {side: len(by_side[side]) for side in SIDES},
        "metrics": metrics,
        "target": facts.target,
        "budgets": check_budgets(facts, pruned, private_label(samples)),
        "throttling": throttling(samples),
        "inter_token_latency": {
            "percent": list(_PERCENTS),
            **{f"{side}_ms": _distribution(by_side[side]) for side in SIDES},
        },
        "cold_load": sorted({sample.cold_why for sample in samples if sample.cold_why}),
        "memory_source": sorted({reading.source for sample in samples for reading in sample.memory.values()}),
        "before_loading_bytes": {side: _before_loading(by_side[side]) for side in SIDES},
        "parent_cpu_share_max": max((sample.cpu_share for sample in samples), default=None),
        "method": METHOD,
        "notes": list(facts.notes),
    }
    clean: dict[str, Any] = plain(document)
    return clean | {"title": title(clean), "summary": summary(clean)}


def _metrics(facts: RunFacts, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    # (pair, side) -> values. Of repeated records the first one counts.
    values: dict[tuple[int, Side], dict[str, float]] = {}
    for sample in samples:
        values.setdefault((sample.pair, sample.side), metrics_of(sample, facts))
    subjects = {side: subject_metrics(facts.subjects[side]) for side in SIDES}
    pairs = sorted({pair for pair, _ in values})
    rows = []
    for defined in definitions(facts):
        metric = replace(defined, label=private_label(samples)) if defined.key == "private_bytes" else defined
        fixed = {side: subjects[side].get(metric.key) for side in SIDES}
        if any(value is not None for value in fixed.values()):
            rows.append(_fixed(metric, fixed))
            continue
        columns = {side: [values.get((pair, side), {}).get(metric.key) for pair in pairs] for side in SIDES}
        if any(value is not None for column in columns.values() for value in column):
            rows.append(_measured(metric, columns, facts))
    return rows


def _fixed(metric: Metric, fixed: Mapping[Side, float | None]) -> dict[str, Any]:
    new, old = fixed["pruned"], fixed["baseline"]
    ratio = None if new is None or old is None else exact_ratio(new, old, 0)
    return _row(metric, {side: _side([value]) for side, value in fixed.items()}, ratio, judged=True)


def _measured(metric: Metric, columns: Mapping[Side, Sequence[float | None]], facts: RunFacts) -> dict[str, Any]:
    known = {side: [value for value in columns[side] if value is not None] for side in SIDES}
    paired = list(zip(columns["pruned"], columns["baseline"], strict=True))
    ratio = paired_ratio(paired)
    if ratio is not None and _never_varies(metric, known, ratio.n):
        ratio = exact_ratio(known["pruned"][0], known["baseline"][0], ratio.n)
    judged = facts.status == "complete" and not (facts.emulated and metric.speed)
    return _row(metric, {side: _side(columns[side]) for side in SIDES}, ratio, judged=judged)


def _never_varies(metric: Metric, known: Mapping[Side, Sequence[float]], pairs: int) -> bool:
    if any(len(set(values)) != 1 for values in known.values()):
        return False
    # A few equal readings do not show that a quantity never varies.
    return metric.deterministic or (metric.unit == "bytes" and pairs >= LEAST_PAIRS)


def _row(metric: Metric, sides: Mapping[Side, Any], ratio: Ratio | None, *, judged: bool) -> dict[str, Any]:
    shown: str = NOT_COMPARED
    if ratio is not None:
        shown = verdict(ratio, metric.better) if judged else NOT_JUDGED
    return {
        "key": metric.key,
        "label": metric.label,
        "unit": metric.unit,
        "better": metric.better,
        "group": metric.group,
        "pruned": sides["pruned"],
        "baseline": sides["baseline"],
        "ratio": None if ratio is None else asdict(ratio),
        "verdict": shown,
    }


def _side(values: Sequence[float | None]) -> dict[str, Any] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    interval = median_interval(known)
    return {
        "median": median(known),
        "low": None if interval is None else interval[0],
        "high": None if interval is None else interval[1],
        "n": len(known),
    }


def _prompt(prompt: Prompt) -> dict[str, Any]:
    return {
        "name": prompt.name,
        "characters": {side: prompt.characters.get(side) for side in SIDES},
        "sha256": hashlib.sha256(prompt.text.encode("utf-8", "surrogatepass")).hexdigest(),
        "tokens": {side: prompt.tokens.get(side) for side in SIDES},
        "skipped": prompt.skipped,
    }


def _before_loading(samples: Sequence[Sample]) -> float | None:
    found = (before_loading(sample) for sample in samples)
    return median(value for value in found if value is not None)


def _distribution(samples: Sequence[Sample]) -> list[float | None] | None:
    ordered = sorted(value for sample in samples for value in inter_token_ms(sample.generations))
    return [quantile(ordered, percent / 100) for percent in _PERCENTS] if ordered else None


def plain(value: Any) -> Any:
    """Convert to JSON values, because values from a device may be anything."""
    if isinstance(value, bool) or value is None or isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        # A lone surrogate (from an undecodable file name) cannot be encoded as UTF-8.
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    return plain(str(value))
