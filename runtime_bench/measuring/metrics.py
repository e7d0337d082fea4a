"""Derive the metrics of the report from raw records. A metric that a record does not give is absent, never 0.

Speeds of two sides with different vocabularies cannot be compared in tokens, because a token of one side can be longer
than a token of the other. `characters_per_s` is therefore tokens per second times characters per token. The
characters per token of both sides are counted on the *same* reference text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from runtime_bench.measuring.statistics import Better, quantile
from runtime_bench.records import PYTHON_BYTES, Generation, Memory, RunFacts, Sample, Side, Subject

ITL_QUANTILES = (50, 90, 99)


@dataclass(frozen=True)
class Metric:
    """Definition of one reported quantity.

    Attributes:
        key: name in report.json; a part after a colon names the prompt or depth.
        label: name for a reader.
        unit: `s`, `ms`, `tokens/s`, `characters/s`, `bytes`, `bits/byte`.
        better: which direction is an improvement.
        group: `size`, `quality`, `memory`, `load`, `ttft`, `prefill`, `decode`, `itl`, `text`.
        speed: true if it depends on the speed of the device. A value from an emulator is then not meaningful.
        deterministic: true if every run of the same files gives the same value.
    """

    key: str
    label: str
    unit: str
    better: Better
    group: str
    speed: bool = False
    deterministic: bool = False


_SUBJECT = (
    Metric("size_bytes", "File size", "bytes", "lower", "size", deterministic=True),
    Metric("bits_per_byte", "Bits per byte", "bits/byte", "lower", "quality", deterministic=True),
)
# Source of `Memory.private` -> name of the quantity. Each system defines it differently.
_PRIVATE = {"/proc/PID/status": "PSS", "proc_pid_rusage": "phys_footprint", "psutil": "Private bytes"}
_MEMORY = (
    Metric("peak_rss_bytes", "Peak RSS", "bytes", "lower", "memory"),
    Metric("rss_anon_bytes", "RssAnon", "bytes", "lower", "memory"),
    Metric("rss_file_bytes", "RssFile", "bytes", "lower", "memory"),
    Metric("private_bytes", "Private memory", "bytes", "lower", "memory"),
    Metric("kv_cache_bytes", "KV cache", "bytes", "lower", "memory", deterministic=True),
    Metric("device_memory_bytes", "Device memory", "bytes", "lower", "memory", deterministic=True),
)
_LOAD = (
    Metric("load_warm_s", "Load time, file in page cache", "s", "lower", "load", speed=True),
    Metric("load_cold_s", "Load time, pages dropped", "s", "lower", "load", speed=True),
)
_PREFILL = (
    Metric("prefill_tokens_per_s", "Prefill, tokens", "tokens/s", "higher", "prefill", speed=True),
    Metric("prefill_characters_per_s", "Prefill, characters", "characters/s", "higher", "prefill", speed=True),
)
_TEXT = (
    Metric("characters_per_s", "Decode, characters of the same text", "characters/s", "higher", "text", speed=True),
    Metric("s_per_1000_characters", "Seconds per 1,000 characters", "s", "lower", "text", speed=True),
)


def definitions(facts: RunFacts) -> tuple[Metric, ...]:
    """Return all metrics that a run with these prompts and depths can have, in the order of the report."""
    prompts = [prompt.name for prompt in facts.prompts if prompt.skipped is None]
    return (
        *_SUBJECT,
        *_MEMORY,
        *_LOAD,
        *(Metric(f"ttft_s:{name}", f"TTFT, {name}", "s", "lower", "ttft", speed=True) for name in prompts),
        *_PREFILL,
        *(_decode(f"depth-{depth}", f"at depth {depth}") for depth in facts.depths),
        *(_decode(name, f"after {name}") for name in prompts),
        *(
            Metric(f"itl_p{share}_ms", f"Inter-token latency, p{share}", "ms", "lower", "itl", speed=True)
            for share in ITL_QUANTILES
        ),
        *_TEXT,
    )


def _decode(name: str, label: str) -> Metric:
    return Metric(f"decode_tokens_per_s:{name}", f"Decode {label}", "tokens/s", "higher", "decode", speed=True)


def metrics_of(sample: Sample, facts: RunFacts) -> dict[str, float]:
    """Return metric key -> value, for the metrics that one record gives."""
    found: dict[str, float | None] = {"load_warm_s": sample.load_s, "load_cold_s": sample.cold_load_s}
    named = {prompt.name for prompt in facts.prompts}
    for generation in sample.generations:
        if generation.depth is None and generation.name in named:
            found[f"ttft_s:{generation.name}"] = ttft(generation)
            found[f"decode_tokens_per_s:{generation.name}"] = decode_rate([generation])
        elif generation.depth is not None:
            found[f"decode_tokens_per_s:depth-{generation.depth}"] = decode_rate([generation])
    found |= _prefill(sample, facts)
    latencies = sorted(inter_token_ms(sample.generations))
    for share in ITL_QUANTILES:
        found[f"itl_p{share}_ms"] = quantile(latencies, share / 100)
    speed = _characters_per_s(sample, facts)
    found["characters_per_s"] = speed
    found["s_per_1000_characters"] = 1000 / speed if speed else None
    timed = {key: float(value) for key, value in found.items() if value is not None and _positive(value)}
    # Memory of 0 is a value (RssFile without mapped files). A time of 0 means that the clock is too coarse.
    return timed | {key: float(value) for key, value in _memory(sample).items() if value is not None and value >= 0}


def subject_metrics(subject: Subject) -> dict[str, float]:
    """Return metric key -> value, for the metrics that are known without running the artifact."""
    found = {"size_bytes": subject.size_bytes, "bits_per_byte": subject.bits_per_byte}
    return {key: float(value) for key, value in found.items() if value is not None and _positive(value)}


def ttft(generation: Generation) -> float | None:
    """Return the seconds from the start of the prompt to the first token, or None without a token."""
    return generation.token_s[0] if generation.token_s and _positive(generation.token_s[0]) else None


def decode_rate(generations: Iterable[Generation]) -> float | None:
    """Return tokens per second after the first token, over all generations. None if it cannot be computed."""
    tokens, seconds = 0, 0.0
    for generation in generations:
        times = generation.token_s
        if len(times) < 2 or not _ascending(times) or times[-1] <= times[0]:
            continue
        tokens += len(times) - 1
        seconds += times[-1] - times[0]
    return tokens / seconds if seconds > 0 else None


def inter_token_ms(generations: Iterable[Generation]) -> list[float]:
    """Return the milliseconds between successive tokens after the first, over all generations."""
    return [
        (later - earlier) * 1000
        for generation in generations
        if _ascending(generation.token_s)
        for earlier, later in pairwise(generation.token_s)
    ]


def longest_prompt(facts: RunFacts) -> str | None:
    """Name of the measured prompt with the most tokens of the baseline, so that both sides use the same prompt."""
    measured = [prompt for prompt in facts.prompts if prompt.skipped is None]
    return max(measured, key=lambda prompt: prompt.tokens.get("baseline", 0)).name if measured else None


def judged_prompt(facts: RunFacts) -> str | None:
    """Name of the prompt for the budgets of TTFT and decode: `chat` if measured, otherwise the first one."""
    measured = [prompt.name for prompt in facts.prompts if prompt.skipped is None]
    return "chat" if "chat" in measured else next(iter(measured), None)


def characters_per_token(facts: RunFacts, side: Side) -> float | None:
    """Return the characters per token of this side on the reference text, or None if unknown."""
    tokens = facts.reference_tokens.get(side, 0)
    return facts.reference_characters / tokens if tokens > 0 and facts.reference_characters > 0 else None


def private_label(samples: Sequence[Sample]) -> str:
    """Name of `private_bytes` on the device of these records; `Private memory` if the source is unknown."""
    readings = (reading for sample in samples for reading in sample.memory.values() if reading.private is not None)
    sources = {str(reading.source) for reading in readings}
    return _PRIVATE.get(sources.pop(), "Private memory") if len(sources) == 1 else "Private memory"


def before_loading(sample: Sample) -> float | None:
    """Return the bytes of the engine's process before it loaded the model.

    None for an engine that is not a Python package.
    """
    value = sample.buffers.get(PYTHON_BYTES)
    return float(value) if value is not None and _positive(value) else None


def _prefill(sample: Sample, facts: RunFacts) -> dict[str, float | None]:
    name = longest_prompt(facts)
    # With different chat templates, the same conversation has a different number of characters on each side.
    characters = next((prompt.characters.get(sample.side, 0) for prompt in facts.prompts if prompt.name == name), 0)
    for generation in sample.generations:
        if generation.depth is None and generation.name == name and _positive(generation.prompt_s):
            return {
                "prefill_tokens_per_s": generation.prompt_tokens / generation.prompt_s,
                "prefill_characters_per_s": characters / generation.prompt_s,
            }
    return {}


def _characters_per_s(sample: Sample, facts: RunFacts) -> float | None:
    rate = decode_rate(generation for generation in sample.generations if generation.depth is None)
    length = characters_per_token(facts, sample.side)
    return None if rate is None or length is None else rate * length


def _memory(sample: Sample) -> dict[str, int | None]:
    readings = list(sample.memory.values())
    last = sample.memory.get("end") or sample.memory.get("loaded") or Memory("none")
    return {
        # A peak never falls, so the largest reading is the peak.
        "peak_rss_bytes": max((reading.peak_rss for reading in readings if reading.peak_rss is not None), default=None),
        "rss_anon_bytes": last.rss_anon,
        "rss_file_bytes": last.rss_file,
        "private_bytes": last.private,
        "kv_cache_bytes": sample.kv_cache_bytes,
        "device_memory_bytes": sample.device_memory_bytes,
    }


def _ascending(times: Sequence[float]) -> bool:
    return all(math.isfinite(time) for time in times) and all(a <= b for a, b in pairwise(times))


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0
