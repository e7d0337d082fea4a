"""How a pruned model was made, in words and as JSON: what was cut, and what a repair and a training behind it gave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compact.plan import PrunePlan
    from compact.prune import PruneOptions


def method_line(plan: PrunePlan) -> str:
    """How a pruned model was made, in one line: what was cut, and whether anything was fitted or trained behind it."""
    cut = "COMPACT, arXiv 2509.06836 (rare vocabulary and FFN channels)"
    if plan.method in {"magnitude", "random"}:
        cut = f"rare vocabulary, and FFN channels by {plan.method}"
    parts = [cut]
    if plan.repair is not None and plan.repair.get("share"):
        parts.append("`down_proj` fitted to the original's outputs by least squares")
    if plan.recovery is not None:
        text = " + ".join(plan.recovery["text"])
        parts.append(f"trained by the original on {plan.recovery['tokens']:,} tokens of {text}")
    return "; ".join(parts) if len(parts) > 1 else f"{cut}; no training"


def gain_lines(plan: PrunePlan, asked: PruneOptions) -> list[str]:
    """What the steps behind the cut gave on text kept out of them, a line for each that was asked for."""
    lines = []
    if asked.method == "repair":
        lines.append(f"repair: {_repair_words(plan.repair or {})}")
    if asked.recover is not None:
        recovery = plan.recovery
        if recovery is None:
            lines.append("recovery: no better model was found on the text kept out; nothing that was learned is kept")
        else:
            words = _changes({name: (value, recovery["after"][name]) for name, value in recovery["before"].items()})
            lines.append(
                f"recovery: {words} bits per byte on text kept out (the best model had seen {recovery['tokens']:,} "
                f"tokens of {' + '.join(recovery['text'])}; {recovery['history'][-1]['seconds'] / 60:.1f} minutes)"
            )
    return lines


def _repair_words(repair: Mapping[str, Any]) -> str:
    if not repair.get("share"):
        return repair.get("why") or "worse than the plain cut on the text kept out; the plain cut is kept"
    part = "" if repair["share"] == 1 else f", {repair['share']:.0%} of the change kept"
    if not repair.get("bits_per_byte"):
        return f"not judged{part}"
    values = {name: (entry["plain"], entry["repaired"]) for name, entry in repair["bits_per_byte"].items()}
    return f"{_changes(values)} bits per byte on text kept out{part}"


def _changes(values: Mapping[str, tuple[float, float]]) -> str:
    return ", ".join(f"{name} {before:.4f} -> {after:.4f}" for name, (before, after) in values.items())


def as_json(plan: PrunePlan) -> dict[str, Any]:
    """The fields of `--json`; the plan has the rest."""
    recovery = plan.recovery
    shown = None if recovery is None else {name: value for name, value in recovery.items() if name != "history"}
    return {"method": plan.method, "repair": plan.repair, "recovery": shown}
