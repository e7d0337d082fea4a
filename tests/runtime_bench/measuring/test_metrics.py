"""Metrics of records whose figures are known."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_bench.measuring.metrics import decode_rate, definitions, inter_token_ms, metrics_of
from runtime_bench.records import Generation, Memory, Prompt, Sample
from tests.runtime_bench import synthetic_run


def generation(*times: float, name: str = "chat", depth: int | None = None, prompt_s: float = 0.5) -> Generation:
    return Generation(name, depth, 100, prompt_s, times, 10 * len(times))


def record(*generations: Generation) -> Sample:
    return replace(synthetic_run.samples(1)[0], generations=generations)


CHAT = Prompt("chat", "y" * 400, {"pruned": 110, "baseline": 100}, {"pruned": 400, "baseline": 400})
LONG = Prompt("document", "z" * 1200, {"pruned": 330, "baseline": 300}, {"pruned": 1200, "baseline": 1500})


def test_speeds_of_a_record() -> None:
    facts = synthetic_run.facts(
        prompts=(CHAT, LONG),
        depths=(512,),
        reference_characters=4000,
        reference_tokens={"pruned": 1000, "baseline": 800},
    )
    sample = record(
        generation(0.6, 0.7, 0.8, 1.0),  # 3 tokens in 0.4 s
        generation(2.1, 2.2, 2.3, name="document", prompt_s=2.0),  # 2 tokens in 0.2 s
        generation(1.0, 1.5, name="depth-512", depth=512),  # 1 token in 0.5 s
    )
    found = metrics_of(sample, facts)
    assert found["ttft_s:chat"] == 0.6
    assert found["ttft_s:document"] == 2.1
    assert "ttft_s:depth-512" not in found
    assert found["decode_tokens_per_s:chat"] == pytest.approx(7.5)
    assert found["decode_tokens_per_s:document"] == pytest.approx(10)
    assert found["decode_tokens_per_s:depth-512"] == pytest.approx(2)
    assert found["prefill_tokens_per_s"] == pytest.approx(100 / 2.0)
    assert found["prefill_characters_per_s"] == pytest.approx(1200 / 2.0)
    # 5 tokens in 0.6 s over the prompts, 4 characters per token; the depths do not count.
    assert found["characters_per_s"] == pytest.approx(5 / 0.6 * 4)
    assert found["s_per_1000_characters"] == pytest.approx(1000 / (5 / 0.6 * 4))
    # Six pauses of 100, 100, 200, 100, 100, 500 ms.
    assert found["itl_p50_ms"] == pytest.approx(100)
    assert found["itl_p99_ms"] == pytest.approx(485)
    assert set(found) <= {metric.key for metric in definitions(facts)}


def test_a_side_whose_chat_template_adds_text_reads_more_characters() -> None:
    facts = synthetic_run.facts(prompts=(LONG,))
    found = {
        sample.side: metrics_of(
            replace(sample, generations=(generation(2.1, 2.2, name="document", prompt_s=2.0),)), facts
        )
        for sample in synthetic_run.samples(1)
    }
    assert found["pruned"]["prefill_tokens_per_s"] == found["baseline"]["prefill_tokens_per_s"]
    assert found["pruned"]["prefill_characters_per_s"] == pytest.approx(1200 / 2.0)
    assert found["baseline"]["prefill_characters_per_s"] == pytest.approx(1500 / 2.0)


def test_the_same_text_is_compared_and_not_the_same_tokens() -> None:
    """Equal tokens per second with a smaller vocabulary is slower for the reader."""
    facts = synthetic_run.facts()
    pair = [
        metrics_of(replace(sample, generations=(generation(0.5, 0.6, 0.7),)), facts)
        for sample in synthetic_run.samples(1)
    ]
    pruned, baseline = pair
    assert pruned["decode_tokens_per_s:chat"] == baseline["decode_tokens_per_s:chat"]
    assert pruned["characters_per_s"] / baseline["characters_per_s"] == pytest.approx(3.9 / 4.4, rel=1e-3)


def test_the_peak_is_the_largest_reading_and_zero_is_a_reading() -> None:
    memory = {
        "loaded": Memory("x", rss=1, rss_file=9, peak_rss=70),
        "end": Memory("x", rss=1, rss_file=0, rss_anon=5, peak_rss=None),
    }
    found = metrics_of(replace(record(), memory=memory), synthetic_run.facts())
    assert found["peak_rss_bytes"] == 70
    assert found["rss_file_bytes"] == 0
    assert "private_bytes" not in found


@pytest.mark.parametrize(
    "times", [(), (0.5,), (0.5, 0.5, 0.5), (0.5, 0.4), (0.5, math.nan), (0.5, math.inf), (math.nan, 0.5)]
)
def test_a_generation_that_tells_no_rate_has_none(times: tuple[float, ...]) -> None:
    assert decode_rate([generation(*times)]) is None
    found = metrics_of(record(generation(*times)), synthetic_run.facts())
    assert "decode_tokens_per_s:chat" not in found
    assert "characters_per_s" not in found
    json.dumps(found, allow_nan=False)


def test_no_token_means_no_ttft() -> None:
    found = metrics_of(record(generation(), generation(0.25, name="short")), synthetic_run.facts())
    assert "ttft_s:chat" not in found
    assert found["ttft_s:short"] == 0.25


def test_nothing_measured_is_nothing_reported() -> None:
    empty = replace(
        record(),
        load_s=None,
        cold_load_s=None,
        memory={},
        kv_cache_bytes=None,
        device_memory_bytes=None,
        generations=(),
    )
    assert metrics_of(empty, synthetic_run.facts()) == {}


def test_a_skipped_prompt_is_no_metric() -> None:
    facts = synthetic_run.facts(prompts=(CHAT, replace(LONG, skipped="does not fit the context")))
    keys = {metric.key for metric in definitions(facts)}
    assert "ttft_s:chat" in keys
    assert "ttft_s:document" not in keys


finite = st.floats(allow_nan=True, allow_infinity=True, min_value=None)


@given(st.lists(st.lists(finite, max_size=6), max_size=4), finite)
def test_hostile_times_never_become_hostile_figures(rows: list[list[float]], prompt_s: float) -> None:
    generations = tuple(generation(*row, prompt_s=prompt_s) for row in rows)
    found = metrics_of(record(*generations), synthetic_run.facts())
    assert all(math.isfinite(value) and value >= 0 for value in found.values())


@given(st.lists(st.floats(0, 1e4), min_size=2, max_size=30))
def test_pauses_add_up_to_the_time_between_first_and_last(times: list[float]) -> None:
    times.sort()
    assert sum(inter_token_ms([generation(*times)])) == pytest.approx((times[-1] - times[0]) * 1000, abs=1e-5)
