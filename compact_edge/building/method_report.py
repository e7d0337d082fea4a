"""Describes how a pruned model was made, as text and as JSON: the cut, and the gains of repair and training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from compact.pruning.budget_options import has_limits
from compact.pruning.methods import METHODS, Method, method_named, method_of_plan
from compact.pruning.recovery_record import changes

if TYPE_CHECKING:
    from compact.pruning.options import PruneOptions
    from compact.pruning.plan import PrunePlan
    from compact.sources.model_source import ModelSource


def how_words(method: str, *, learns: bool) -> tuple[str, str]:
    """Return two texts for a file's description: the cut, and the steps after the cut."""
    return _words(method_named(method), learns=learns)


def plan_words(plan: PrunePlan) -> tuple[str, str]:
    """Return `how_words` for a plan. A repair that had no benefit does not count."""
    return _words(_method_kept(plan), learns=plan.recovery is not None)


def _words(method: Method, *, learns: bool) -> tuple[str, str]:
    after = (method.adapted, "trained by the original" if learns else "")
    return method.cut_words[0], "".join(f", {words}" for words in after if words)


def _method_kept(plan: PrunePlan) -> Method:
    """Return the plan's method, without the words of a change of the weights that was not kept."""
    method = method_of_plan(plan.method)
    return method if _is_repaired(plan) else replace(method, adapted="", adapted_in_card="")


def _is_repaired(plan: PrunePlan) -> bool:
    return plan.repair is not None and bool(plan.repair.get("share"))


def method_line(plan: PrunePlan) -> str:
    """Return one line on how a pruned model was made: the cut, and any repair or training after it."""
    method = _method_kept(plan)
    cut = method.cut_words[1]
    parts = [cut]
    if method.adapted_in_card:
        parts.append(method.adapted_in_card)
    if plan.recovery is not None:
        text = " + ".join(plan.recovery["text"])
        parts.append(f"trained by the original on {plan.recovery['tokens']:,} tokens of {text}")
    return "; ".join(parts) if len(parts) > 1 else f"{cut}; no training"


def gain_lines(plan: PrunePlan, asked: PruneOptions) -> list[str]:
    """Return one line per requested step after the cut, with its gain on held-out text."""
    lines = []
    if method_of_plan(asked.method).adapt is not None:
        lines.append(f"{asked.method}: {_repair_words(plan.repair or {})}")
    if asked.recover is not None:
        recovery = plan.recovery
        if recovery is None:
            lines.append("recovery: training found no better model on held-out text, so its result is discarded")
        else:
            words = changes(recovery["before"], recovery["after"], recovery.get("unpruned", {}))
            lines.append(
                f"recovery: bits per byte on held-out text {words} (best model after {recovery['tokens']:,} "
                f"tokens of {' + '.join(recovery['text'])}; {recovery['history'][-1]['seconds'] / 60:.1f} minutes)"
            )
    return lines


def less_loss(source: ModelSource, plan: PrunePlan, asked: PruneOptions, file_bytes: int | None = None) -> list[str]:
    """Return suggestions for a better model of the same size, with their cost, without the steps already done.

    Args:
        source: the unpruned model.
        plan: the plan of the build.
        asked: the user's options.
        file_bytes: size of the artifact, if it was made. A search for this size may find a better file.
    """
    from compact.distill.run import memory_of
    from compact.pruning.recover_options import DEFAULT_MINUTES, RecoverOptions

    ways = []
    if plan.intermediate_size < source.intermediate_size:
        better = [method for method in METHODS.values() if method.advice and method.channels_of == plan.method]
        ways += [(f"--method {method.name}", method.advice) for method in better]
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
    if file_bytes is not None and not has_limits(asked):
        # Rounded up, so that the same file would fit.
        size = f"{math.ceil(file_bytes / 1e5) / 10:g}MB"
        ways.append((f"--fit {size}", "compares all types and sizes, with and without a cut, for this file size"))
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
