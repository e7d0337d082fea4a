"""Checks the pruned side against the limits of its target profile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime_bench.engines.registry import ENGINES, engine_kind
from runtime_bench.measuring.metrics import judged_prompt
from runtime_bench.records import Budget, RunFacts

# name: (unit, whether the limit is a maximum, what is measured)
_KINDS: Mapping[str, tuple[str, bool, str]] = {
    "memory": ("bytes", True, "peak RSS"),
    "storage": ("bytes", True, "size of the files"),
    "ttft": ("s", True, "TTFT"),
    "decode": ("tokens/s", False, "decode speed"),
}

_GROWING = "the engine's key-value cache grows with the text, so its peak does not show the memory of the whole context"


def check_budgets(
    facts: RunFacts, pruned: Mapping[str, float], private: str = "Private memory"
) -> list[dict[str, Any]]:
    """Return each budget with the measured value (median of the pruned side) and whether it is met.

    Args:
        facts: facts of the run. For an incomplete run, only storage is checked.
        pruned: metric key -> median of the pruned side.
        private: name of `private_bytes` on the device (`runtime_bench.measuring.metrics.private_label`).

    Returns:
        One JSON object per budget. If the budget could not be checked, `passed` is None and `reason` has the reason.
    """
    return [_judge_one(budget, facts, pruned, private) for budget in facts.budgets]


def _judge_one(budget: Budget, facts: RunFacts, pruned: Mapping[str, float], private: str) -> dict[str, Any]:
    unit, at_most, what = _KINDS.get(budget.name, ("", True, budget.name))
    result: dict[str, Any] = {
        "name": budget.name,
        "limit": budget.limit,
        "unit": unit,
        "bound": "at most" if at_most else "at least",
        "source": budget.source,
        "what": what,
        "measured": None,
        "passed": None,
        "reason": None,
    }
    if budget.name not in _KINDS:
        return result | {"reason": "this version does not know the budget"}
    measured, what = _measured(budget.name, facts, pruned, private)
    result |= {"measured": measured, "what": what}
    if facts.status != "complete" and budget.name != "storage":
        return result | {"reason": f"the run is {facts.status}: only storage is judged"}
    if facts.emulated and budget.name in ("ttft", "decode"):
        return result | {"reason": "the device is an emulator, so its speed is not meaningful"}
    if budget.name == "memory" and _cache_grows(facts):
        return result | {"reason": _GROWING}
    if measured is None:
        return result | {"reason": "not measured on this device"}
    return result | {"passed": measured <= budget.limit if at_most else measured >= budget.limit}


def _cache_grows(facts: RunFacts) -> bool:
    name = str(facts.engine.get("name"))
    return name in ENGINES and engine_kind(name).cache_grows


def _measured(name: str, facts: RunFacts, pruned: Mapping[str, float], private: str) -> tuple[float | None, str]:
    if name == "storage":
        return pruned.get("size_bytes"), "size of the files"
    if name == "memory":
        context = facts.settings.get("context")
        place = f" at a context of {context} tokens" if context else ""
        for key, label in (("peak_rss_bytes", "peak RSS"), ("private_bytes", private)):
            if key in pruned:
                return pruned[key], label + place
        return None, f"peak RSS{place}"
    prompt = judged_prompt(facts)
    if prompt is None:
        return None, f"{_KINDS[name][2]} (no prompt was measured)"
    if name == "ttft":
        return pruned.get(f"ttft_s:{prompt}"), f"TTFT of the prompt {prompt}"
    return pruned.get(f"decode_tokens_per_s:{prompt}"), f"decode speed after the prompt {prompt}"
