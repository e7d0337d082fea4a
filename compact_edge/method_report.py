"""Describes how a pruned model was made, as text and as JSON: the cut, and the gains of repair and training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compact.plan import PrunePlan
    from compact.prune import PruneOptions
    from compact.source import ModelSource


def how_words(method: str, *, learns: bool) -> tuple[str, str]:
    """Return two texts for a file's description: the cut, and the steps after the cut."""
    cut = "COMPACT (arXiv 2509.06836)" if method in {"compact", "repair"} else f"COMPACT with channels by {method}"
    repaired = ", repaired by least squares" if method == "repair" else ""
    return cut, repaired + (", trained by the original" if learns else "")


def plan_words(plan: PrunePlan) -> tuple[str, str]:
    """Return `how_words` for a plan. A repair that had no benefit does not count."""
    method = "compact" if plan.method == "repair" and not _is_repaired(plan) else plan.method
    return how_words(method, learns=plan.recovery is not None)


def _is_repaired(plan: PrunePlan) -> bool:
    return plan.repair is not None and bool(plan.repair.get("share"))


def method_line(plan: PrunePlan) -> str:
    """Return one line on how a pruned model was made: the cut, and any repair or training after it."""
    cut = "COMPACT, arXiv 2509.06836 (rare vocabulary and FFN channels)"
    if plan.method in {"magnitude", "random"}:
        cut = f"rare vocabulary, and FFN channels by {plan.method}"
    parts = [cut]
    if _is_repaired(plan):
        parts.append("`down_proj` fitted to the original's outputs by least squares")
    if plan.recovery is not None:
        text = " + ".join(plan.recovery["text"])
        parts.append(f"trained by the original on {plan.recovery['tokens']:,} tokens of {text}")
    return "; ".join(parts) if len(parts) > 1 else f"{cut}; no training"


def gain_lines(plan: PrunePlan, asked: PruneOptions) -> list[str]:
    """Return one line per requested step after the cut, with its gain on held-out text."""
    lines = []
    if asked.method == "repair":
        lines.append(f"repair: {_repair_words(plan.repair or {})}")
    if asked.recover is not None:
        recovery = plan.recovery
        if recovery is None:
            lines.append("recovery: training found no better model on held-out text, so its result is discarded")
        else:
            words = _changes({name: (value, recovery["after"][name]) for name, value in recovery["before"].items()})
            lines.append(
                f"recovery: {words} bits per byte on held-out text (best model after {recovery['tokens']:,} "
                f"tokens of {' + '.join(recovery['text'])}; {recovery['history'][-1]['seconds'] / 60:.1f} minutes)"
            )
    return lines


def less_loss(source: ModelSource, plan: PrunePlan, asked: PruneOptions) -> list[str]:
    """Return suggestions for a better model of the same size, with their cost, without the steps already done."""
    from compact.recovery.distill import memory_of
    from compact.recovery.options import DEFAULT_MINUTES, RecoverOptions

    ways = []
    if plan.method == "compact" and plan.intermediate_size < source.intermediate_size:
        ways.append(("--method repair", "recommended: fits the kept channels to the original, without training"))
    if asked.recover is None and plan.recovery is None:
        needed, free = memory_of(source, plan.sizes, RecoverOptions(), asked.device, asked.dtype)
        minutes = f"{DEFAULT_MINUTES:.0f}"
        short = ", more than is free on this machine" if needed > free else ""
        ways.append(
            (
                f"--recover distill --recover-minutes {minutes}",
                f"trains it with the original as teacher: {minutes} minutes, {needed / 1e9:.1f} GB of memory{short}",
            )
        )
    if not ways:
        return []
    width = max(len(option) for option, _ in ways)
    return ["to lose less at this size:", *(f"  {option:<{width}}  {words}" for option, words in ways)]


def _repair_words(repair: Mapping[str, Any]) -> str:
    if not repair.get("share"):
        return repair.get("why") or "worse than the plain cut on held-out text, so the plain cut is kept"
    part = "" if repair["share"] == 1 else f", {repair['share']:.0%} of the change kept"
    if not repair.get("bits_per_byte"):
        return f"not compared with the plain cut, because memory was short{part}"
    values = {name: (entry["plain"], entry["repaired"]) for name, entry in repair["bits_per_byte"].items()}
    return f"{_changes(values)} bits per byte on held-out text{part}"


def _changes(values: Mapping[str, tuple[float, float]]) -> str:
    return ", ".join(f"{name} {before:.4f} -> {after:.4f}" for name, (before, after) in values.items())


def as_json(plan: PrunePlan) -> dict[str, Any]:
    """Return the fields for `--json`. The plan has the rest."""
    recovery = plan.recovery
    shown = None if recovery is None else {name: value for name, value in recovery.items() if name != "history"}
    return {"method": plan.method, "repair": plan.repair, "recovery": shown}
