"""Model cards: front matter that the Hub's own parser accepts, and what it carries over from the source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from exporters.card import CardFacts, base_model_of, front_matter, has_chat_template, render, source_front_matter
from tests.checkpoints import write_checkpoint

SOURCE = """---
license: other
license_name: llama3.2
license_link: https://example.org/LICENSE
language:
- en
- de
base_model: maker/Base-1B
tags:
- chat
- gguf
library_name: transformers
widget: [{text: hello}]
---
# A model
"""


def facts(**changes: Any) -> CardFacts:
    values: dict[str, Any] = {
        "title": "m-compact-1B-Q8_0",
        "files": ["m-compact-1B-Q8_0.gguf"],
        "quant": "Q8_0",
        "bits_per_weight": 8.5123,
        "size_bytes": 123_456_789,
        "rows": [("parameters", "1.2B", "1.0B")],
        "notes": ["channels chosen by compact: a | b", "checked in full"],
        "plan_id": "a" * 64,
        "source_id": "b" * 64,
        "use": ["llama-cli -m m-compact-1B-Q8_0.gguf -c 4096 -cnv"],
    }
    return CardFacts(**{**values, **changes})


def with_card(directory: Path, text: str) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "README.md").write_text(text, encoding="utf-8")
    return directory


def test_licence_language_and_base_model_are_carried(tmp_path: Path) -> None:
    matter = front_matter(with_card(tmp_path, SOURCE), pruned=True)
    card = ModelCard(render(facts(), matter))
    assert card.data.license == "other"
    assert card.data.license_name == "llama3.2"
    assert card.data.license_link == "https://example.org/LICENSE"
    assert card.data.language == ["en", "de"]
    assert card.data.base_model == "maker/Base-1B"
    assert card.data.to_dict()["base_model_relation"] == "quantized"
    assert card.data.tags == ["gguf", "llama.cpp", "compact-edge", "pruned", "chat"]
    assert card.data.pipeline_tag == "text-generation"
    # What would be wrong for a GGUF stays behind.
    assert card.data.library_name is None
    assert "widget" not in card.data.to_dict()


def test_the_unpruned_baseline_is_not_called_pruned(tmp_path: Path) -> None:
    matter = front_matter(with_card(tmp_path, SOURCE), pruned=False)
    text = render(facts(plan_id=None, rows=[], notes=[]), matter)
    assert ModelCard(text).data.tags == ["gguf", "llama.cpp", "chat"]
    assert "plan.json" not in text
    assert "COMPACT" not in text


@pytest.mark.parametrize(
    "readme",
    [None, "# no front matter\n", "---\nlicense: [unclosed\n---\n", "---\n- a\n- list\n---\n", "---\nlicense:\n---\n"],
)
def test_a_source_without_a_usable_card_gets_a_valid_one(tmp_path: Path, readme: str | None) -> None:
    if readme is not None:
        with_card(tmp_path, readme)
    matter = front_matter(tmp_path, pruned=True)
    card = ModelCard(render(facts(), matter))
    assert card.data.license == "unknown"
    assert card.data.base_model is None
    assert "base_model_relation" not in card.data.to_dict()


def test_a_card_that_is_no_text_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\xfe\n---\n")
    assert source_front_matter(tmp_path) == {}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("maker/Base-1B", "maker/Base-1B"),
        ("[maker/Base-1B]", "maker/Base-1B"),
        ("[a/b, c/d]", None),
        ("/home/me/model", None),
        ("model", None),
        ("3", None),
    ],
)
def test_base_model(tmp_path: Path, value: str, expected: str | None) -> None:
    assert base_model_of(with_card(tmp_path, f"---\nbase_model: {value}\n---\n")) == expected


def test_text_of_the_card(tmp_path: Path) -> None:
    text = render(facts(), front_matter(tmp_path, pruned=True))
    assert "# m-compact-1B-Q8_0" in text
    assert "`m-compact-1B-Q8_0.gguf`: 123.5 MB, Q8_0, 8.51 bits per weight." in text
    assert "| parameters | 1.2B | 1.0B |" in text
    assert "llama-cli -m m-compact-1B-Q8_0.gguf -c 4096 -cnv" in text
    assert "a" * 64 in text
    assert "b" * 64 in text
    parts = render(facts(files=["a", "b"], intro=["In 2 parts."]), front_matter(tmp_path, pruned=True, tags=("onnx",)))
    assert "`a` and `b`: 123.5 MB" in parts
    assert "bits per weight.\n\nIn 2 parts.\n\n|" in parts
    assert ModelCard(parts).data.tags[0] == "onnx"


def test_a_licence_that_binds_is_shown(tmp_path: Path) -> None:
    from compact.base.licences import LICENCES

    licence = next(row for row in LICENCES if row.key == "llama3.2")
    matter = front_matter(tmp_path, pruned=True, hub_id="maker/Base", licence=licence)
    hub = f"maker/Base@{'c' * 40}"
    card = ModelCard(render(facts(licence=licence, source_hub=hub), matter))
    assert (card.data.license, card.data.license_name) == ("other", "llama3.2")
    assert card.data.base_model == "maker/Base"
    assert "**Built with Llama**" in card.text
    assert "Copyright © Meta Platforms, Inc. All Rights Reserved.\n" in card.text
    assert "https://www.llama.com/llama3_2/license/" in card.text
    assert "https://www.llama.com/llama3_2/use-policy." in card.text
    assert f"- source: `{hub}`, sha256" in card.text
    plain = render(facts(), front_matter(tmp_path, pruned=True))
    assert "## Licence" not in plain
    gemma = next(row for row in LICENCES if row.key == "gemma")
    text = render(facts(licence=gemma), front_matter(tmp_path, pruned=True, licence=gemma))
    assert "https://ai.google.dev/gemma/terms" in text
    assert "restrictions of section 3.2" in text


def test_a_chat_template_is_found_in_either_place(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "model")
    assert has_chat_template(checkpoint)
    (checkpoint / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    assert not has_chat_template(checkpoint)
    (checkpoint / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    assert has_chat_template(checkpoint)
