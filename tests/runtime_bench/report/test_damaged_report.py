"""A report.json that is none, or that somebody changed: refused in one line, or harmless."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from compact.base.errors import DamagedFileError
from compact.base.files import write_json
from runtime_bench import report
from runtime_bench.report.document import make_document
from runtime_bench.report.html import html
from runtime_bench.report.markdown import markdown
from runtime_bench.report.read import check_document, read_document
from tests.runtime_bench import synthetic_run


def break_schema(document: dict[str, Any]) -> None:
    document["schema"] = "compact-edge/bench/2"


def break_metric(document: dict[str, Any]) -> None:
    document["metrics"][3]["ratio"]["median"] = "1.2"


def break_ratio(document: dict[str, Any]) -> None:
    document["metrics"][3]["ratio"]["low"] = 0


def break_latencies(document: dict[str, Any]) -> None:
    document["inter_token_latency"]["pruned_ms"].pop()


def break_count(document: dict[str, Any]) -> None:
    document["pairs"] = True


def break_length(document: dict[str, Any]) -> None:
    document["inter_token_latency"]["percent"] = [1, 2]


def break_choice(document: dict[str, Any]) -> None:
    document["metrics"][0]["verdict"] = "splendid"


def break_hash(document: dict[str, Any]) -> None:
    document["prompts"][0]["sha256"] = "none"


def break_number(document: dict[str, Any]) -> None:
    document["parent_cpu_share_max"] = 10**400


def break_missing(document: dict[str, Any]) -> None:
    del document["subjects"]["baseline"]["sha256"]


BREAKS = (
    break_schema,
    break_metric,
    break_ratio,
    break_latencies,
    break_count,
    break_length,
    break_choice,
    break_hash,
    break_number,
    break_missing,
)


@pytest.mark.parametrize("change", BREAKS, ids=lambda change: change.__name__)
def test_a_damaged_report_is_refused_in_one_line(change: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    document = make_document(synthetic_run.facts(), synthetic_run.samples())
    change(document)
    write_json(tmp_path / "report.json", document)
    with pytest.raises(DamagedFileError) as caught:
        read_document(tmp_path)
    assert "report.json" in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": null}', "{", '{"schema": "compact-edge/bench/1"}', "\xff"]
)
def test_what_is_no_report_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(text, encoding="latin-1")
    with pytest.raises(DamagedFileError):
        read_document(tmp_path)


def test_a_missing_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError):
        read_document(tmp_path)


SCHEMA = Draft202012Validator(json.loads(Path(report.__file__).with_name("report.schema.json").read_text("utf-8")))
VALID = json.dumps(make_document(synthetic_run.facts(), synthetic_run.samples(2)))
atoms = st.one_of(st.none(), st.booleans(), st.integers(-3, 10**30), st.text(max_size=3), st.just([]), st.just({}))


@settings(max_examples=300)
@given(st.data())
def test_any_one_change_is_refused_or_harmless(data: st.DataObject) -> None:
    """Whatever the reader accepts fits the schema, and the writers of the other forms can take it."""
    document = json.loads(VALID)
    place: Any = document
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        key = data.draw(st.sampled_from(keys))
        if isinstance(place[key], (dict, list)) and place[key] and data.draw(st.booleans()):
            place = place[key]
            continue
        place[key] = data.draw(atoms)
        break
    try:
        check_document(document, "report.json")
    except DamagedFileError:
        return
    assert SCHEMA.is_valid(document)
    markdown(document)
    html(document)
