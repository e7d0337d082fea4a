"""The estimate of llama.cpp's memory, beside what its server reported and had resident."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.common import recorded
from compact.architectures.published import published_model
from compact.base.errors import DamagedFileError
from compact.pruning.budget import Sizes
from compact.sources.config_source import config_of_row
from exporters.gguf.estimate import estimated_sizes
from exporters.gguf.memory import (
    MemoryEstimate,
    compute_bytes,
    estimate_memory,
    estimate_of_config,
    kv_cache_bytes,
)

MIB = 1024 * 1024
ROWS = recorded("memory-estimate")["rows"]
NAMES = [f"{row['name']}, {row['context']}" for row in ROWS]


def estimate(name: str, quant: str, isa: tuple[str, ...] | None) -> MemoryEstimate:
    row = published_model(name)
    assert row is not None
    source = config_of_row(row)
    model = estimated_sizes(source.config, source.family, quant)
    own = Sizes(row.vocab_size, row.intermediate_size)
    return estimate_memory(model, source.config, source.family, own, context=2048, isa=isa)


def of(row: dict[str, Any]) -> MemoryEstimate:
    """The estimate for a model that was measured."""
    sizes = Sizes(row["vocab_size"], row["intermediate_size"])
    embedding = "IQ4_NL" if row["quant"] == "IQ4_NL" else None
    settings = {"isa": row["measured"]["isa"], "embedding_quant": embedding, "merges": row["merges"]}
    return estimate_of_config(row["config"], sizes, row["quant"], row["context"], **settings)


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_buffers_are_those_that_the_server_reports(row: dict[str, Any]) -> None:
    buffers, parts = row["measured"]["buffers"], of(row)
    assert parts.kv_cache == pytest.approx(buffers["CPU KV"], abs=0.01 * MIB)
    assert parts.compute == pytest.approx(buffers["CPU compute"] + buffers["CPU output"], rel=0.1)
    assert parts.repacked == pytest.approx(buffers.get("CPU_REPACK model", 0), rel=0.001)
    assert parts.weights == pytest.approx(buffers["CPU_Mapped model"], rel=0.02)


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_the_total_is_within_a_tenth_of_what_was_resident(row: dict[str, Any]) -> None:
    assert of(row).total == pytest.approx(row["measured"]["peak_rss"], rel=0.1)


def test_the_bench_measured_the_same() -> None:
    """The recorded run of `compact-edge bench`, another script's: both sides within a tenth."""
    run = recorded("bench-smollm2-135m")["runs"][0]
    sides = run["metrics"]["peak_rss_bytes"]
    rows = {row["vocab_size"]: row for row in ROWS if row["name"].startswith("smollm2") and row["context"] == 2048}
    assert (run["settings"]["context"], run["quant"], len(rows)) == (2048, "IQ4_NL", 2)
    assert of(rows.pop(49152)).total == pytest.approx(sides["baseline"], rel=0.1)
    assert of(rows.popitem()[1]).total == pytest.approx(sides["pruned"], rel=0.1)


def test_keys_and_values() -> None:
    for name, layers in (("smollm2-135m", 30), ("llama-3.2-1b", 16), ("qwen2.5-0.5b", 24)):
        row = published_model(name)
        assert row is not None
        source = config_of_row(row)
        expected = 2 * layers * row.kv_heads * row.head_dim * 2 * 4096
        assert kv_cache_bytes(source.config, source.family, 4096) == expected
        assert kv_cache_bytes(source.config, source.family, 4095) == expected  # whole cells of 256
        assert kv_cache_bytes(source.config, source.family, 4096, kv_bytes=4) == 2 * expected


def test_layers_with_a_window_hold_the_window_and_a_batch() -> None:
    row = published_model("gemma-3-1b")
    assert row is not None
    source = config_of_row(row)
    cell = 2 * row.kv_heads * row.head_dim * 2
    full = row.layers // 6
    assert kv_cache_bytes(source.config, source.family, 8192) == cell * (full * 8192 + (row.layers - full) * 1024)
    assert kv_cache_bytes(source.config, source.family, 512) == cell * row.layers * 512


def test_what_a_cpu_repacks() -> None:
    """Q8_0 is repacked on Arm and not on x86; of an untied embedding there is never a second copy."""
    assert estimate("smollm2-135m", "Q8_0", ("avx2",)).repacked == 0
    arm = estimate("smollm2-135m", "Q8_0", ("neon", "dotprod"))
    assert arm.weights * 0.99 < arm.repacked < arm.weights
    assert estimate("smollm2-135m", "Q8_0", None).repacked == arm.repacked
    assert estimate("smollm2-135m", "F16", None).repacked == 0
    untied = estimate("qwen2.5-7b", "Q4_0", ("neon", "dotprod"))
    assert untied.repacked < untied.weights * 0.95
    # A tied head whose rows do not come out even stays as it is.
    row = published_model("smollm2-135m")
    assert row is not None
    even, odd = (
        estimate_of_config(row.config(), Sizes(size, 1536), "Q4_0", 2048, isa=("avx2",), embedding_quant="IQ4_NL")
        for size in (32768, 32767)
    )
    assert even.repacked - odd.repacked == 32768 * 576 * 18 // 32


def test_an_ffn_channel_costs_compute_memory() -> None:
    row = published_model("smollm2-135m")
    assert row is not None
    source = config_of_row(row)
    whole, cut = (compute_bytes(source.config, source.family, Sizes(49152, inner), 2048) for inner in (1536, 1024))
    assert whole > cut
    short = compute_bytes(source.config, source.family, Sizes(49152, 1536), 64)
    assert short < whole / 5  # a context shorter than a batch


def test_a_hostile_window_is_a_typed_error() -> None:
    row = published_model("gemma-3-1b")
    assert row is not None
    source = config_of_row(row)
    for window in ("wide", [1], float("nan")):
        with pytest.raises(DamagedFileError, match="sliding_window"):
            kv_cache_bytes({**source.config, "sliding_window": window}, source.family, 2048)
