"""report.json against its schema, and what it says of runs that went well or badly."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import runtime_bench.report
from compact.base.files import write_json
from runtime_bench.records import SIDES, Budget, Memory, Prompt, Sample, Thermal
from runtime_bench.report.document import make_document
from runtime_bench.report.html import html
from runtime_bench.report.markdown import markdown
from runtime_bench.report.read import read_document
from tests.runtime_bench import synthetic_run

SCHEMA = json.loads((Path(runtime_bench.report.__file__).parent / "report.schema.json").read_text("utf-8"))
VALIDATOR = Draft202012Validator(SCHEMA)


def without_memory(sample: Sample) -> Sample:
    return replace(sample, memory={}, kv_cache_bytes=None, thermal={})


def without_tokens(sample: Sample) -> Sample:
    return replace(sample, generations=tuple(replace(g, token_s=()) for g in sample.generations))


def hostile(sample: Sample) -> Sample:
    return replace(
        sample,
        load_s=math.nan,
        cold_load_s=math.inf,
        thermal={"before": Thermal((), {"x": math.nan}), "after": Thermal((0,), {})},
        generations=tuple(replace(g, prompt_s=0.0, token_s=(math.nan, 1.0)) for g in sample.generations),
    )


RUNS: dict[str, Callable[[], dict[str, Any]]] = {
    "ten pairs": lambda: make_document(synthetic_run.facts(), synthetic_run.samples()),
    "two pairs": lambda: make_document(synthetic_run.facts(), synthetic_run.samples(2)),
    "half a pair": lambda: make_document(synthetic_run.facts(), synthetic_run.samples(1)[:1]),
    "partial": lambda: make_document(
        synthetic_run.facts(status="partial", reason="the link was lost"), synthetic_run.samples(3)
    ),
    "nothing": lambda: make_document(synthetic_run.facts(status="not measured", reason="no device"), []),
    "emulated": lambda: make_document(synthetic_run.facts(emulated=True), synthetic_run.samples()),
    "unlike": lambda: make_document(synthetic_run.facts(unlike=("types differ",)), synthetic_run.samples()),
    "no memory": lambda: make_document(synthetic_run.facts(), synthetic_run.samples(change=without_memory)),
    "no tokens": lambda: make_document(synthetic_run.facts(), synthetic_run.samples(change=without_tokens)),
    "hostile figures": lambda: make_document(
        synthetic_run.facts(
            device={"bogus": math.nan, 3: (1, 2), "path": Path("x"), "name": "a\ud800b"},
            prompts=(),
            depths=(),
            reference_characters=0,
            reference_tokens={},
            target=None,
            budgets=(),
        ),
        synthetic_run.samples(change=hostile),
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_every_kind_of_run_fits_the_schema_and_reads_again(name: str, tmp_path: Path) -> None:
    document = RUNS[name]()
    assert [error.message for error in VALIDATOR.iter_errors(document)] == []
    write_json(tmp_path / "report.json", document)
    assert read_document(tmp_path) == document
    assert read_document(tmp_path / "report.json") == document


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def row(document: dict[str, Any], key: str) -> dict[str, Any]:
    found: dict[str, Any] = next(metric for metric in document["metrics"] if metric["key"] == key)
    return found


def test_a_complete_run() -> None:
    document = RUNS["ten pairs"]()
    assert document["title"] == "smollm2-135m-compact Q8_0 on Raspberry Pi 5 Model B Rev 1.0"
    assert document["pairs"] == 10
    assert document["batch_size"] == 1
    size = row(document, "size_bytes")
    assert size["pruned"]["median"] == 115_500_000
    assert size["ratio"]["exact"] is True
    assert size["ratio"]["median"] == pytest.approx(115.5 / 144.8)
    assert row(document, "kv_cache_bytes")["verdict"] == "no difference"
    decode = row(document, "decode_tokens_per_s:depth-512")
    assert decode["verdict"] == "better"
    assert decode["ratio"]["low"] < decode["ratio"]["median"] < decode["ratio"]["high"]
    assert decode["ratio"]["confidence"] == pytest.approx(1 - 2 * 11 / 1024)
    assert row(document, "bits_per_byte")["verdict"] == "worse"
    assert document["throttling"]["verdict"] == "none seen"
    quantiles = document["inter_token_latency"]["pruned_ms"]
    assert len(quantiles) == 101
    assert quantiles == sorted(quantiles)


def test_few_pairs_claim_no_interval() -> None:
    decode = row(RUNS["two pairs"](), "characters_per_s")
    assert decode["ratio"]["low"] is None
    assert decode["verdict"] == "not enough pairs"


@pytest.mark.parametrize(
    ("changes", "beginning"),
    [
        ({"status": "partial", "reason": "x"}, "PARTIAL: "),
        ({"status": "not measured", "reason": "x"}, "NOT MEASURED: "),
        ({"emulated": True}, "EMULATED: "),
        ({"unlike": ("threads differ",)}, "UNLIKE PAIR: "),
        ({"unlike": ("x",), "emulated": True}, "EMULATED, UNLIKE PAIR: "),
    ],
)
def test_titles_say_what_must_not_be_ranked(changes: dict[str, Any], beginning: str) -> None:
    document = make_document(synthetic_run.facts(**changes), synthetic_run.samples())
    assert document["title"].startswith(beginning)


def test_a_partial_run_judges_nothing_but_storage() -> None:
    document = RUNS["partial"]()
    passed = {budget["name"]: budget["passed"] for budget in document["budgets"]}
    assert passed == {"memory": None, "storage": True, "ttft": None, "decode": None}
    assert all("partial" in budget["reason"] for budget in document["budgets"] if budget["passed"] is None)
    assert {metric["verdict"] for metric in document["metrics"] if metric["group"] == "decode"} == {"not judged"}
    assert "times as many" not in document["summary"]


def test_an_emulator_has_no_speed() -> None:
    document = RUNS["emulated"]()
    passed = {budget["name"]: budget["passed"] for budget in document["budgets"]}
    assert passed == {"memory": True, "storage": True, "ttft": None, "decode": None}
    speeds = {metric["verdict"] for metric in document["metrics"] if metric["group"] in ("decode", "ttft", "load")}
    assert speeds == {"not judged"}
    assert row(document, "peak_rss_bytes")["verdict"] == "better"


def test_budgets_on_either_side_of_their_limit() -> None:
    measured = row(RUNS["ten pairs"](), "decode_tokens_per_s:chat")["pruned"]["median"]
    limits = (
        Budget("decode", measured, "exactly met"),
        Budget("decode", measured * 1.01, "missed"),
        Budget("storage", 115_500_000, "exactly met"),
        Budget("storage", 115_499_999, "missed"),
        Budget("ttft", 0.1, "missed"),
        Budget("memory", 1e6, "missed"),
    )
    document = make_document(synthetic_run.facts(budgets=limits), synthetic_run.samples())
    assert [budget["passed"] for budget in document["budgets"]] == [True, False, True, False, False, False]
    assert document["budgets"][0]["what"] == "decode speed after the prompt chat"
    assert "2048" in document["budgets"][5]["what"]


def test_memory_falls_back_to_the_private_share() -> None:
    def only_private(sample: Sample) -> Sample:
        return replace(sample, memory={"end": Memory("psutil", private=3 * 2**30)})

    document = make_document(synthetic_run.facts(), synthetic_run.samples(change=only_private))
    memory = document["budgets"][0]
    assert memory["what"].startswith("Private bytes at")
    assert memory["passed"] is False


@pytest.mark.parametrize(
    ("sources", "label"),
    [
        (("/proc/PID/status",), "PSS"),
        (("proc_pid_rusage",), "phys_footprint"),
        (("psutil",), "Private bytes"),
        (("elsewhere",), "Private memory"),
        (("psutil", "proc_pid_rusage"), "Private memory"),
    ],
)
def test_the_private_share_has_the_name_of_its_system(sources: tuple[str, ...], label: str) -> None:
    def change(sample: Sample) -> Sample:
        source = sources[sample.pair % len(sources)]
        return replace(sample, memory={"loaded": Memory("ps", rss=1), "end": Memory(source, private=3 * 2**30)})

    document = make_document(synthetic_run.facts(), synthetic_run.samples(change=change))
    assert row(document, "private_bytes")["label"] == label
    assert document["budgets"][0]["what"].startswith(label)
    escaped = label.replace("_", "\\_")
    assert f"| {escaped} |" in markdown(document)
    assert ("Memory, private" if label == "Private memory" else f"Memory, {label}") in html(document)


def test_memory_of_a_growing_cache_is_not_judged() -> None:
    for name, passed in (("onnxruntime", None), ("onnxruntime-genai", True)):
        document = make_document(synthetic_run.facts(engine={"name": name}), synthetic_run.samples())
        memory, *others = document["budgets"]
        assert memory["passed"] is passed
        assert all(budget["passed"] for budget in others)
        assert memory["reason"] is None or "grows with the text" in memory["reason"]


def test_without_a_chat_prompt_the_first_measured_one_is_judged() -> None:
    prompts = (
        replace(synthetic_run.facts().prompts[0], skipped="too long"),
        synthetic_run.facts().prompts[1],
    )
    document = make_document(synthetic_run.facts(prompts=prompts), synthetic_run.samples())
    assert document["budgets"][2]["what"] == "TTFT of the prompt document"


def frequencies(before: int, after: Callable[[Sample], int]) -> Callable[[Sample], Sample]:
    def change(sample: Sample) -> Sample:
        return replace(
            sample, thermal={"before": Thermal((600, before), {}), "after": Thermal((after(sample), 600), {})}
        )

    return change


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (frequencies(2_400_000_000, lambda _: 2_400_000_000), "none seen"),
        (frequencies(2_400_000_000, lambda _: 1_800_000_000), "warning"),
        (frequencies(600_000_000, lambda _: 2_400_000_000), "none seen"),
        (frequencies(600_000_000, lambda s: 2_400_000_000 if s.pair < 5 else 1_500_000_000), "warning"),
        (frequencies(600_000_000, lambda s: 2_400_000_000 if s.side == "pruned" else 2_000_000_000), "warning"),
        (without_memory, "unknown"),
    ],
)
def test_throttling(change: Callable[[Sample], Sample], verdict: str) -> None:
    found = make_document(synthetic_run.facts(), synthetic_run.samples(change=change))["throttling"]
    assert found["verdict"] == verdict
    assert bool(found["reasons"]) == (verdict != "none seen")


def test_a_record_that_is_there_twice_counts_once() -> None:
    samples = synthetic_run.samples(6)
    once, twice = make_document(synthetic_run.facts(), samples), make_document(synthetic_run.facts(), samples * 2)
    assert row(once, "characters_per_s") == row(twice, "characters_per_s")


def test_prompts_of_other_texts_are_told_apart() -> None:
    first, second = (
        make_document(
            synthetic_run.facts(prompts=(Prompt("chat", text, dict.fromkeys(SIDES, 1), dict.fromkeys(SIDES, 3)),)), []
        )
        for text in ("one", "two")
    )
    assert first["prompts"][0]["sha256"] != second["prompts"][0]["sha256"]


def constant_memory(sample: Sample) -> Sample:
    size = 90 if sample.side == "pruned" else 100
    return replace(sample, memory={"end": Memory("x", rss_file=size, peak_rss=size)})


@pytest.mark.parametrize(("pairs", "verdict"), [(2, "not enough pairs"), (5, "not enough pairs"), (6, "better")])
def test_equal_readings_of_few_pairs_claim_nothing(pairs: int, verdict: str) -> None:
    document = make_document(synthetic_run.facts(), synthetic_run.samples(pairs, change=constant_memory))
    for key in ("peak_rss_bytes", "rss_file_bytes"):
        assert row(document, key)["verdict"] == verdict
        assert row(document, key)["ratio"]["exact"] is (pairs == 6)
    # A file's size and the key-value cache of a context are no measurements.
    assert row(document, "size_bytes")["verdict"] == "better"
    assert row(document, "kv_cache_bytes")["ratio"]["exact"] is True


def test_where_things_lie_on_the_users_machine_is_not_published() -> None:
    """report.json goes into pull requests; facts.json keeps everything."""
    facts = synthetic_run.facts(
        device={"model": "AMD EPYC", "python": "/home/me/.pyenv/shims/python3", "python_version": "3.11.7"},
        engine={
            "name": "llama-server",
            "path": "/home/me/.cache/engine/abc",
            "server": "llama-server",
            "files": ["llama-server"],
            "flags": {"GGML_AVX": "ON", "CMAKE_TOOLCHAIN_FILE": "C:\\Users\\me\\ndk\\android.cmake"},
            "sources": ["~/llama.cpp", "x"],
            "linker": "-L/home/me/lib -static",
            "build": "build 1 (0c1e570) with GNU 12.2.0 for Linux x86_64",
            "python": "3.11.7",
        },
        settings={"threads": 4, "cache": "/home/me/cache"},
    )
    document = make_document(facts, [])
    assert document["device"] == {"model": "AMD EPYC", "python_version": "3.11.7"}
    assert document["engine"] == {
        "name": "llama-server",
        "flags": {"GGML_AVX": "ON"},
        "build": "build 1 (0c1e570) with GNU 12.2.0 for Linux x86_64",
        "python": "3.11.7",
    }
    assert document["settings"] == {"threads": 4}


def with_python(sample: Sample) -> Sample:
    own = {"pruned": 95_000_000, "baseline": 96_000_000}[sample.side] + sample.pair
    return replace(sample, buffers={**sample.buffers, "Python before loading": own})


def test_the_memory_of_python_is_told_apart() -> None:
    document = make_document(synthetic_run.facts(), synthetic_run.samples(7, change=with_python))
    assert [error.message for error in VALIDATOR.iter_errors(document)] == []
    assert document["before_loading_bytes"] == {"pruned": 95_000_003, "baseline": 96_000_003}
    assert RUNS["ten pairs"]()["before_loading_bytes"] == {"pruned": None, "baseline": None}


def test_characters_of_a_prompt_are_told_by_side() -> None:
    prompt = Prompt("chat", "text", {"pruned": 2, "baseline": 1}, {"pruned": 4, "baseline": 7})
    document = make_document(synthetic_run.facts(prompts=(prompt,)), [])
    assert document["prompts"][0]["characters"] == {"pruned": 4, "baseline": 7}


def test_the_method_says_that_an_even_number_of_pairs_balances_the_order() -> None:
    assert "even number of pairs" in RUNS["ten pairs"]()["method"]
