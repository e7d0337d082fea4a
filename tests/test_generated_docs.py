"""Tables in the docs are what their script makes of the recorded results."""

from __future__ import annotations

import json

from benchmarks import families, tokenizer_parity
from compact.families import FAMILIES


def test_the_table_of_families() -> None:
    results = families.recorded()
    text = families.DOCS.read_text(encoding="utf-8")
    assert families.docs_with_table(text, results) == text
    assert [result["model"] for result in results if not result["passed"]] == []


def test_every_family_is_documented_and_was_checked() -> None:
    text = families.DOCS.read_text(encoding="utf-8")
    checked = {result["architecture"] for result in families.recorded()}
    for family in FAMILIES:
        assert f"`{family.architecture}`" in text
        assert family.architecture in checked


def test_the_table_of_tokenizers() -> None:
    recorded = json.loads((families.RESULTS / "tokenizers.json").read_text(encoding="utf-8"))
    text = tokenizer_parity.DOCS.read_text(encoding="utf-8")
    assert tokenizer_parity.docs_with_table(text, recorded["results"], recorded["refused"]) == text
    assert [result["name"] for result in recorded["results"] if result["failures"]] == []
