"""The places of a chat template: always the one that Transformers uses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compact.base.errors import DamagedFileError
from compact.sources.model_source import open_directory
from compact.vocabulary.chat_templates import read_chat_templates
from compact.vocabulary.tokenizer import write_pruned_tokenizer
from tests.chat_places import MAIN, PLACES, TOOL, C, templates_of, with_templates


@pytest.mark.parametrize("place", PLACES)
def test_the_templates_are_those_of_transformers(tmp_path: Path, place: str) -> None:
    source = with_templates(tmp_path / "source", place)
    expected = templates_of(source)
    assert read_chat_templates(source) == expected
    pruned = tmp_path / "pruned"
    pruned.mkdir()
    (pruned / "config.json").write_bytes((source / "config.json").read_bytes())
    write_pruned_tokenizer(source, pruned, range(400))
    assert templates_of(pruned) == expected


def test_an_empty_template_is_none(tmp_path: Path) -> None:
    source = with_templates(tmp_path / "source", "text")
    (source / MAIN).write_text(" \n", encoding="utf-8")
    assert read_chat_templates(source) == {}


@pytest.mark.parametrize("value", [5, [5], [{"name": "default"}], {"default": None}, [{"template": "x"}]])
def test_a_template_that_is_not_text_is_refused(tmp_path: Path, value: Any) -> None:
    source = with_templates(tmp_path / "source", "none")
    config = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    (source / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": value}), encoding="utf-8")
    with pytest.raises(DamagedFileError, match=r"tokenizer_config\.json: chat_template is neither text nor a list"):
        read_chat_templates(source)


def test_templates_that_transformers_ignores_are_named(tmp_path: Path) -> None:
    def note(place: str) -> str | None:
        return open_directory(with_templates(tmp_path / place, place), name="m", origin="m").note

    assert note("text") is None and note("jinja") is None
    assert "ignores the one in tokenizer_config.json" in str(note("jinja beside an older text"))
    assert "AutoTokenizer ignores chat_template.json" in str(note("processor's file"))
    assert note("processor's file beside a text") is None


def test_a_named_template_is_part_of_the_models_id(tmp_path: Path) -> None:
    source = with_templates(tmp_path / "source", "named files")
    before = open_directory(source, name="m", origin="m").id
    (source / TOOL).write_text(C, encoding="utf-8")
    assert open_directory(source, name="m", origin="m").id != before
