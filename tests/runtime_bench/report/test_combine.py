"""Several runs beside each other: who is ranked, who is not, and with whom."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from runtime_bench.report.combine import combine
from runtime_bench.report.document import make_document
from tests.runtime_bench import synthetic_run
from tests.runtime_bench.report.report_pages import HOSTILE, PARSER, cells, facts_of, hostile_facts, outline, run


def test_ranked_by_the_pruned_models_characters_a_second() -> None:
    found = combine([run("slow", 60), run("fast", 120), run("middle", 90)])["json"]
    assert [len(group["runs"]) for group in found["groups"]] == [3]
    assert [(entry["device"], entry["rank"]) for entry in found["groups"][0]["runs"]] == [
        ("fast", 1),
        ("middle", 2),
        ("slow", 3),
    ]
    assert found["notes"] == []


@pytest.mark.parametrize(
    ("changes", "mark"),
    [
        ({"status": "partial", "reason": "the link was lost"}, "PARTIAL"),
        ({"status": "not measured", "reason": "no device"}, "NOT MEASURED"),
        ({"emulated": True}, "EMULATED"),
        ({"unlike": ("types differ",)}, "UNLIKE PAIR"),
    ],
)
def test_what_must_not_be_ranked_stands_apart_with_its_reason(changes: dict[str, Any], mark: str) -> None:
    combined = combine([run("good"), run("other", 500, **changes)])
    found = combined["json"]
    assert [entry["device"] for group in found["groups"] for entry in group["runs"]] == ["good"]
    (apart,) = found["apart"]
    assert apart["marks"] == [mark]
    assert apart["rank"] is None
    reason = str(changes.get("reason") or "".join(changes.get("unlike", ("emulator",))))
    for text in (combined["md"], combined["html"]):
        assert mark in text
        assert reason in text


def test_other_engines_and_other_prompts_are_not_comparable() -> None:
    other_text = tuple(replace(prompt, text=prompt.text + "!") for prompt in synthetic_run.facts().prompts)
    runs = [
        run("one"),
        run("two", engine={"name": "onnxruntime", "version": "1"}),
        run("three", prompts=other_text),
        run("four", 90),
    ]
    combined = combine(runs)
    groups = [[entry["device"] for entry in group["runs"]] for group in combined["json"]["groups"]]
    assert groups == [["four", "one"], ["two"], ["three"]]
    # First of one is no place.
    assert [entry["rank"] for group in combined["json"]["groups"][1:] for entry in group["runs"]] == [None, None]
    for text in (combined["md"], combined["html"]):
        assert "not comparable" in text


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("threads", 1, "threads"),
        ("context", 512, "context"),
        ("new_tokens", 8, "new tokens"),
        ("gpu_layers", "all", "GPU layers"),
        ("execution_provider", "cuda", "execution provider"),
    ],
)
def test_other_settings_are_not_comparable(key: str, value: Any, name: str) -> None:
    other = run("two", 90, settings={**synthetic_run.facts().settings, key: value})
    combined = combine([run("one"), other, run("three", 70)])
    groups = [[entry["device"] for entry in group["runs"]] for group in combined["json"]["groups"]]
    assert groups == [["one", "three"], ["two"]]
    assert combined["json"]["groups"][1]["settings"][key] == str(value)
    for text in (combined["md"], combined["html"]):
        assert f"Groups differ in {name}: speeds are not comparable" in text


def test_the_table_shows_threads_and_context() -> None:
    combined = combine([run("one"), run("two", 90)])
    header, *rows = cells(PARSER.render(combined["md"]))
    places = [header.index(name) for name in ("threads", "context")]
    assert [[row[place] for place in places] for row in rows] == [["4", "2048"]] * 2
    assert "threads 4, context 2048" in combined["html"]


def test_a_run_without_speed_has_no_rank() -> None:
    samples = synthetic_run.samples(6, change=lambda sample: replace(sample, generations=()))
    silent = make_document(facts_of("silent"), samples)
    entries = combine([silent, run("loud"), run("louder", 90)])["json"]["groups"][0]["runs"]
    assert [(entry["device"], entry["rank"]) for entry in entries] == [("louder", 1), ("loud", 2), ("silent", None)]


@pytest.mark.parametrize("name", [HOSTILE, "<script>x</script>", "|", "\n"])
def test_hostile_names(name: str) -> None:
    import re

    def made(word: str) -> Any:
        facts = hostile_facts(word)
        ranked = make_document(replace(facts, status="complete", unlike=()), synthetic_run.samples(6))
        return combine([ranked, ranked, make_document(facts, [])])

    plain, hostile = made("plain"), made(name)
    assert outline(hostile["html"]).tags == outline(plain["html"]).tags
    tags = [re.findall(r"</?[a-z0-9]+", PARSER.render(one["md"])) for one in (plain, hostile)]
    assert tags[0] == tags[1]


def test_only_runs_apart() -> None:
    combined = combine([run("x", status="partial", reason="y")] * 2)
    assert combined["json"]["groups"] == []
    outline(combined["html"])


def test_one_device_reached_in_two_ways_is_told_apart() -> None:
    found = combine([run("pi", 80, device_spec="local"), run("pi", 90, device_spec="ssh:me@pi:22"), run("other")])
    devices = {entry["device"] for group in found["json"]["groups"] for entry in group["runs"]}
    assert devices == {"pi (local)", "pi (ssh)", "other"}


def test_more_groups_than_letters_have_names_of_their_own() -> None:
    settings = synthetic_run.facts().settings
    runs = [run("device", settings={**settings, "threads": threads}) for threads in range(1, 29)]
    names = [group["name"] for group in combine(runs)["json"]["groups"]]
    assert names[0] == "A"
    assert names[24:] == ["Y", "Z", "AA", "AB"]
