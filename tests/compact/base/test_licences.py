"""Licences that bind the name: how they are recognised, and what the names, notices and notes become."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compact.base.licences import LICENCES, derived_name, licence_notes, naming_licence, write_notice

# The first lines of the licences' own texts.
LLAMA_3_2 = "LLAMA 3.2 COMMUNITY LICENSE AGREEMENT\nLlama 3.2 Version Release Date: September 25, 2024\n"
LLAMA_3 = "META LLAMA 3 COMMUNITY LICENSE AGREEMENT\nMeta Llama 3 Version Release Date: April 18, 2024\n"
QWEN_RESEARCH = "Qwen RESEARCH LICENSE AGREEMENT\n\nQwen RESEARCH LICENSE AGREEMENT Release Date: September 19, 2024\n"
QWEN = "Qwen LICENSE AGREEMENT\n\nQwen LICENSE AGREEMENT Release Date: September 19, 2024\n"
APACHE = "                                 Apache License\n                           Version 2.0, January 2004\n"


def key(directory: Path, matter: dict[str, Any], name: str = "my-finetune", hub_id: str | None = None) -> str | None:
    row = naming_licence(matter, directory, name=name, hub_id=hub_id)
    return None if row is None else row.key


def row(wanted: str) -> Any:
    return next(licence for licence in LICENCES if licence.key == wanted)


@pytest.mark.parametrize(
    ("matter", "expected"),
    [
        ({"license": "llama3.2"}, "llama3.2"),
        ({"license": "llama3.1"}, "llama3.1"),
        ({"license": "llama3"}, "llama3"),
        ({"license": "llama2"}, "llama2"),
        ({"license": "gemma"}, "gemma"),
        ({"license": "other", "license_name": "llama3.3"}, "llama3.3"),
        ({"license": "other", "license_name": "qwen-research"}, "qwen-research"),
        ({"license": "other", "license_name": "qwen"}, "qwen"),
        ({"license": "apache-2.0"}, None),
        ({"license": "other", "license_name": "mine"}, None),
        ({}, None),
        # A fine-tune stays under the licence of what it was made from, whatever its card says of itself.
        ({"license": "mit", "base_model": "meta-llama/Llama-3.2-1B-Instruct"}, "llama3.2"),
        ({"base_model": ["meta-llama/Meta-Llama-3.1-8B"]}, "llama3.1"),
        ({"base_model": "meta-llama/Llama-3.1-8B"}, "llama3.1"),
        ({"base_model": "meta-llama/Meta-Llama-3-8B"}, "llama3"),
        ({"base_model": "google/gemma-2-2b"}, "gemma"),
        ({"base_model": "Qwen/Qwen2.5-3B"}, "qwen-research"),
        ({"base_model": "Qwen/Qwen2.5-0.5B"}, None),
        ({"base_model": 3, "license": ["mit"]}, None),
    ],
)
def test_a_card_s_word(tmp_path: Path, matter: dict[str, Any], expected: str | None) -> None:
    assert key(tmp_path, matter) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [(LLAMA_3_2, "llama3.2"), (LLAMA_3, "llama3"), (QWEN_RESEARCH, "qwen-research"), (QWEN, "qwen"), (APACHE, None)],
)
def test_a_licence_file_s_heading(tmp_path: Path, text: str, expected: str | None) -> None:
    (tmp_path / "LICENSE.txt").write_text(text)
    assert key(tmp_path, {}) == expected


def test_a_name_speaks_only_where_no_card_does(tmp_path: Path) -> None:
    assert key(tmp_path, {}, name="Llama-3.2-1B-Instruct") == "llama3.2"
    assert key(tmp_path, {"license": "apache-2.0"}, name="Llama-3.2-1B-Instruct") is None
    assert key(tmp_path, {}, hub_id="meta-llama/Llama-3.3-70B-Instruct") == "llama3.3"
    assert key(tmp_path, {}, name="TinyLlama-1.1B") is None


@pytest.mark.parametrize(
    ("name", "licence", "expected"),
    [
        ("my-finetune", "llama3.2", "Llama-my-finetune"),
        ("Llama-3.2-1B-Instruct", "llama3.2", "Llama-3.2-1B-Instruct"),
        ("llama_chat", "llama3.1", "llama_chat"),
        ("Meta-Llama-3.1-8B", "llama3.1", "Llama-3.1-8B"),
        ("Meta-Llama-3-8B", "llama3", "Llama-3-8B"),
        ("Llama3-chat", "llama3", "Llama3-chat"),
        ("Llama-chat", "llama3", "Llama-3-Llama-chat"),
        ("TinyLlama", "llama3.2", "Llama-TinyLlama"),
        ("my-finetune", "llama2", "my-finetune"),
        ("my-finetune", "gemma", "my-finetune"),
    ],
)
def test_names(name: str, licence: str, expected: str) -> None:
    made = derived_name(name, row(licence))
    assert made == expected
    assert derived_name(made, row(licence)) == made
    assert derived_name(name, None) == name


def test_a_notice_is_written_where_there_is_none_and_recognised_later(tmp_path: Path) -> None:
    write_notice(None, tmp_path)
    assert list(tmp_path.iterdir()) == []
    write_notice(row("llama3.2"), tmp_path)
    expected = (
        "Llama 3.2 is licensed under the Llama 3.2 Community License, Copyright © Meta Platforms, Inc. All Rights"
    )
    assert (tmp_path / "NOTICE").read_text(encoding="utf-8") == f"{expected} Reserved.\n"
    # What was pruned and has no card is still known for what it is.
    assert key(tmp_path, {}) == "llama3.2"
    other = tmp_path / "other"
    other.mkdir()
    (other / "Notice.txt").write_text("their own")
    write_notice(row("gemma"), other)
    assert [path.name for path in other.iterdir()] == ["Notice.txt"]


def test_the_note_says_what_is_left_to_do(tmp_path: Path) -> None:
    (note,) = licence_notes(row("llama3.2"), tmp_path, card=True)
    assert "must begin with 'Llama'" in note
    assert "the card says 'Built with Llama'" in note
    assert "add one before you publish" in note
    (tmp_path / "LICENSE.txt").write_text(LLAMA_3_2)
    (note,) = licence_notes(row("llama3.2"), tmp_path, card=False)
    assert "the card must say 'Built with Llama'" in note
    assert "add one" not in note
    write_notice(row("gemma"), tmp_path)  # its line holds the name of the terms, and is no copy of them
    (note,) = licence_notes(row("gemma"), tmp_path, card=False)
    assert "must link the terms" in note
    assert "add one before you publish" in note


def test_a_folder_with_another_name_is_to_be_renamed(tmp_path: Path) -> None:
    assert licence_notes(None, tmp_path, card=False, folder="small") == []
    _, rename = licence_notes(row("llama3.2"), tmp_path, card=False, folder="small")
    assert rename == "small: rename it to Llama-small before you publish it"
    assert len(licence_notes(row("llama3.2"), tmp_path, card=False, folder="Llama-small")) == 1
    assert len(licence_notes(row("gemma"), tmp_path, card=False, folder="small")) == 1
