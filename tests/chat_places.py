"""Checkpoints with chat templates in the different places that models have them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from tests.checkpoints import write_checkpoint

A, B, C = "A{{ messages[0].content }}", "B{{ messages[0].content }}", "C{{ messages[0].content }}"
MAIN, TOOL = "chat_template.jinja", "additional_chat_templates/tool_use.jinja"

# Name -> (chat_template of tokenizer_config.json, files).
PLACES: dict[str, tuple[Any, Mapping[str, str]]] = {
    "none": (None, {}),
    "text": (A, {}),
    "jinja": (None, {MAIN: A}),
    "jinja beside an older text": (B, {MAIN: A}),
    "list": ([{"name": "tool_use", "template": B}, {"name": "default", "template": A}], {}),
    "list without default": ([{"name": "tool_use", "template": B}], {}),
    "list beside a jinja": ([{"name": "default", "template": B}], {MAIN: A}),
    "dict": ({"default": A, "tool_use": B}, {}),
    "named files": (None, {MAIN: A, TOOL: B}),
    "named file beside a text": (A, {TOOL: B}),
    "named default file": (None, {MAIN: A, "additional_chat_templates/default.jinja": B}),
    "processor's file": (None, {"chat_template.json": json.dumps({"chat_template": A})}),
    "processor's file beside a text": (B, {"chat_template.json": json.dumps({"chat_template": A})}),
    "windows line ends": (None, {MAIN: f"A\r\nB{A}"}),
    "text with windows line ends": (f"A\r\nB{A}", {}),
}


def templates_of(directory: Path) -> dict[str, str]:
    """The templates of Transformers, by name, with the line ends that Jinja reads."""
    found = AutoTokenizer.from_pretrained(str(directory)).chat_template
    named = found if isinstance(found, dict) else {} if found is None else {"default": found}
    return {name: "\n".join(text.splitlines()) for name, text in named.items()}


def with_templates(out: Path, place: str) -> Path:
    setting, files = PLACES[place]
    write_checkpoint(out)
    config = json.loads((out / "tokenizer_config.json").read_text(encoding="utf-8"))
    del config["chat_template"]
    config |= {} if setting is None else {"chat_template": setting}
    (out / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    for name, text in files.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(text.encode())
    return out
