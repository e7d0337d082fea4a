"""Rows and lines that report.md and report.html share, as plain text. Each writer escapes them for its format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime_bench.report.published import published
from runtime_bench.report.words import NONE, budget_name, counted, engine_name, fact_line, figure, ratio_words

DECODE_AT_DEPTH = "decode_tokens_per_s:depth-"
GROUPS: Mapping[str, str] = {
    "size": "Size",
    "quality": "Quality",
    "memory": "Memory",
    "load": "Load",
    "ttft": "Time to first token",
    "prefill": "Prefill",
    "decode": "Decode",
    "itl": "Inter-token latency",
    "text": "The same text",
}


@dataclass(frozen=True)
class Row:
    """One metric as text. `metric` is its entry in the document."""

    label: str
    pruned: str
    baseline: str
    ratio: str
    verdict: str
    metric: Mapping[str, Any]


def metric_rows(document: Mapping[str, Any]) -> list[Row]:
    """Return every metric, in the order of the document."""
    return [
        Row(
            label=_label(document, metric),
            pruned=_median(metric, "pruned"),
            baseline=_median(metric, "baseline"),
            ratio=ratio_words(metric["ratio"]),
            verdict=metric["verdict"],
            metric=metric,
        )
        for metric in document["metrics"]
    ]


def first_metric(document: Mapping[str, Any], keys: Sequence[str]) -> Mapping[str, Any] | None:
    """Return the first metric that was measured, in the order of `keys`. A key that ends in a colon is a prefix."""
    metrics: list[Mapping[str, Any]] = document["metrics"]
    for key in keys:
        for metric in metrics:
            if metric["key"] == key or (key.endswith(":") and metric["key"].startswith(key)):
                return metric
    return None


def budget_rows(document: Mapping[str, Any]) -> list[tuple[str, str, str, str, bool | None]]:
    """Return (name, checked quantity, limit, measured value, passed) of each budget, or the reason if unchecked."""
    rows = []
    for budget in document["budgets"]:
        unit = budget["unit"]
        limit = f"{budget['bound']} {figure(budget['limit'], unit)}"
        measured = figure(budget["measured"], unit)
        what = budget["what"] if budget["passed"] is not None else f"{budget['what']}: {budget['reason']}"
        rows.append((budget_name(budget["name"]), what, limit, measured, budget["passed"]))
    return rows


def outcome(passed: bool | None) -> str:
    """Return the result of a budget as text."""
    return "not judged" if passed is None else "pass" if passed else "FAIL"


def fact_rows(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (name, text) of the conditions under which the values were measured."""
    settings = {key: value for key, value in published(document["settings"]).items() if key != "batch_size"}
    rows = [
        ("Device", _joined(fact_line(published(document["device"])), document["device_spec"])),
        ("Engine", _joined(engine_name(document), fact_line(_engine(published(document["engine"]))))),
        ("Settings", _joined("batch size 1 (one user, as on the edge)", fact_line(settings))),
        ("Files", "; ".join(f"{side}: {_subject(document, side)}" for side in ("pruned", "baseline"))),
        ("Texts", _texts(document)),
        ("Pairs", f"{_pairs(document)}. {document['method']}"),
        ("Throttling", throttling_line(document)),
    ]
    sources = _joined(", ".join(document["memory_source"]), "; ".join(document["cold_load"]), "; ")
    if sources:
        rows.append(("Readings", sources))
    if python := _python_memory(document):
        rows.append(("Memory", python))
    return rows


def throttling_line(document: Mapping[str, Any]) -> str:
    """Return the verdict, the frequencies and temperatures it is based on, and the reasons of a warning."""
    found = document["throttling"]
    parts = [found["verdict"]]
    parts += found["reasons"]
    if found["frequency_before_hz"] is not None and found["frequency_after_hz"] is not None:
        parts.append(
            f"fastest core {found['frequency_before_hz'] / 1e9:.2f} GHz before and "
            f"{found['frequency_after_hz'] / 1e9:.2f} GHz after a record"
        )
    if found["temperature_change_c"] is not None and found["temperature_max_c"] is not None:
        parts.append(
            f"{found['temperature_change_c']:+.1f} °C over a record, at most {found['temperature_max_c']:.0f} °C"
        )
    return "; ".join(parts)


def prompt_rows(document: Mapping[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """Return (name, characters, pruned tokens, baseline tokens, reason for skipping) of each prompt.

    The reason is empty if the prompt was not skipped.
    """
    return [
        (
            prompt["name"],
            _characters(prompt["characters"]),
            *(
                NONE if prompt["tokens"][side] is None else f"{prompt['tokens'][side]:,}"
                for side in ("pruned", "baseline")
            ),
            prompt["skipped"] or "",
        )
        for prompt in document["prompts"]
    ]


def _characters(sides: Mapping[str, int | None]) -> str:
    pruned, baseline = (NONE if sides[side] is None else f"{sides[side]:,}" for side in ("pruned", "baseline"))
    return pruned if pruned == baseline else f"{pruned}, baseline {baseline}"


def _engine(engine: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts that distinguish builds of an engine; report.json has all facts."""
    shown = {key: engine[key] for key in ("variant", "isa", "toolchain", "compiler", "build") if engine.get(key)}
    if "variant" not in shown and "isa" not in shown:
        shown |= {key: engine[key] for key in ("cpu_features",) if engine.get(key)}
    return shown


def _python_memory(document: Mapping[str, Any]) -> str:
    """Return how much memory of each side the interpreter and its packages use; empty for an engine without Python."""
    before = document["before_loading_bytes"]
    metric = first_metric(document, ("peak_rss_bytes", "private_bytes"))
    parts = []
    for side in ("pruned", "baseline"):
        if before[side] is not None and metric is not None and metric[side] is not None:
            whole, python = _median(metric, side), figure(before[side], "bytes")
            parts.append(f"{side} {whole}, of which Python and packages before loading {python}")
    return f"{metric['label']}: {'; '.join(parts)}" if metric is not None and parts else ""


def _label(document: Mapping[str, Any], metric: Mapping[str, Any]) -> str:
    if metric["key"] == "bits_per_byte" and document["bits_per_byte_text"]:
        return f"{metric['label']}, {document['bits_per_byte_text']}"
    return str(metric["label"])


def _median(metric: Mapping[str, Any], side: str) -> str:
    return NONE if metric[side] is None else figure(metric[side]["median"], metric["unit"])


def _subject(document: Mapping[str, Any], side: str) -> str:
    subject = document["subjects"][side]
    parts = [subject["name"], f"sha256 {subject['sha256'][:12]}", counted(subject["threads"], "thread")]
    if subject["bits_per_weight"] is not None:
        parts.append(f"{subject['bits_per_weight']:.2f} bits per weight")
    if subject["parameters"] is not None:
        parts.append(f"{subject['parameters'] / 1e6:.1f}M parameters")
    return ", ".join(parts)


def _texts(document: Mapping[str, Any]) -> str:
    reference = document["reference"]
    lengths = reference["characters_per_token"]
    prompts = ", ".join(
        f"{name} ({pruned}/{baseline})" if not skipped else f"{name} (skipped: {skipped})"
        for name, _, pruned, baseline, skipped in prompt_rows(document)
    )
    text = f"prompts (tokens pruned/baseline): {prompts or 'none'}"
    if lengths["pruned"] is not None and lengths["baseline"] is not None:
        text += (
            f"; {lengths['pruned']:.2f} characters per token with the pruned vocabulary, {lengths['baseline']:.2f} "
            f"with the baseline's, over {counted(reference['characters'], 'character')}"
        )
    return text


def _pairs(document: Mapping[str, Any]) -> str:
    share = document["parent_cpu_share_max"]
    text = f"{document['pairs']} complete"
    return text if share is None else f"{text}; the measuring process used at most {share:.1%} of a core"


def _joined(first: str, second: str, between: str = ", ") -> str:
    return between.join(part for part in (first, second) if part)
