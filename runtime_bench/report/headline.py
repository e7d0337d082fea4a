"""The first lines of a report: its title and its main findings in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime_bench.report.words import budget_name, counted, device_name, ratio_words, subject_name, times


def standing(document: Mapping[str, Any]) -> list[str]:
    """Marks of a run that must not be ranked: `NOT MEASURED`, `PARTIAL`, `EMULATED`, `UNLIKE PAIR`; often empty."""
    marks = [] if document["status"] == "complete" else [str(document["status"]).upper()]
    if document["emulated"]:
        marks.append("EMULATED")
    if document["unlike"]:
        marks.append("UNLIKE PAIR")
    return marks


def same_file(document: Mapping[str, Any]) -> bool:
    """Return whether both sides are the same artifact. Such a run shows the noise of the device."""
    first, second = (document["subjects"][side]["sha256"] for side in ("pruned", "baseline"))
    return bool(first) and first == second


def why(document: Mapping[str, Any]) -> list[str]:
    """Return the reason for each mark of `standing`, one line each. An earlier line says if both sides are one file."""
    lines = ["both sides are the same file"] if same_file(document) else []
    if document["status"] != "complete":
        lines.append(f"{document['status']}: {document['reason'] or 'no reason was given'}")
    if document["emulated"]:
        lines.append("emulated: the device is an emulator, so its speed is not meaningful")
    return lines + [f"unlike: {line}" for line in document["unlike"]]


def title(document: Mapping[str, Any]) -> str:
    """Return a title such as `smollm2-135m-compact Q8_0 on Raspberry Pi 5`, preceded by the marks."""
    text = f"{subject_name(document)} on {device_name(document)}"
    marks = ", ".join(standing(document))
    return f"{marks}: {text}" if marks else text


def summary(document: Mapping[str, Any]) -> str:
    """Return one line: speed, memory, size and quality against the baseline. Omits what was not measured."""
    metrics = {metric["key"]: metric for metric in document["metrics"]}
    parts: list[str] = []
    if document["status"] == "complete" and not document["emulated"] and "characters_per_s" in metrics:
        parts.append(_speed(metrics["characters_per_s"]))
    memory = next((metrics[key] for key in ("peak_rss_bytes", "private_bytes") if key in metrics), None)
    if document["status"] == "complete" and memory is not None:
        parts.append(_amount(memory, "the memory", "memory"))
    if "size_bytes" in metrics:
        parts.append(_amount(metrics["size_bytes"], "the file size", "file size"))
    quality = metrics.get("bits_per_byte")
    if quality is not None and quality["pruned"] and quality["baseline"]:
        parts.append(f"{quality['pruned']['median']:.3f} bits per byte against {quality['baseline']['median']:.3f}")
    return ", ".join(part for part in parts if part) or "nothing was measured"


def budget_summary(document: Mapping[str, Any]) -> str:
    """Return `all 4 budgets of raspberry-pi-5 met`, or which are exceeded; empty for a target without budgets."""
    budgets = document["budgets"]
    if not budgets:
        return ""
    target = f" of {document['target']}" if document["target"] else ""
    failed = [budget_name(budget["name"]) for budget in budgets if budget["passed"] is False]
    unjudged = [budget_name(budget["name"]) for budget in budgets if budget["passed"] is None]
    if failed:
        text = f"{len(failed)} of {counted(len(budgets), 'budget')}{target} exceeded: {', '.join(failed)}"
    elif len(unjudged) == len(budgets):
        return f"no budget{target} could be judged"
    elif unjudged:
        text = f"{len(budgets) - len(unjudged)} of {counted(len(budgets), 'budget')}{target} met"
    else:
        return (
            f"all {len(budgets)} budgets{target} met"
            if len(budgets) > 1
            else f"the {budget_name(budgets[0]['name'])} budget{target} met"
        )
    return f"{text}; not judged: {', '.join(unjudged)}" if unjudged else text


def _speed(metric: Mapping[str, Any]) -> str:
    ratio = metric["ratio"]
    if ratio is None:
        return ""
    if metric["verdict"] == "no difference":
        return f"no difference shown in characters per second ({ratio_words(ratio)})"
    text = f"decodes {times(ratio['median'])} times as many characters per second"
    return text + (f" ({counted(ratio['n'], 'pair')}: no interval)" if metric["verdict"] == "not enough pairs" else "")


def _amount(metric: Mapping[str, Any], noun: str, name: str) -> str:
    ratio = metric["ratio"]
    if ratio is None:
        return ""
    if metric["verdict"] == "no difference":
        return f"no difference shown in {name}"
    return f"{times(ratio['median'])} times {noun}"
