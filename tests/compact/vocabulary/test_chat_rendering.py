"""Chat templates in a child process: the text of Transformers, within limits, and refused before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from compact.base.errors import DamagedFileError, DataError
from compact.vocabulary.chat_rendering import (
    CONVERSATIONS,
    ChatRenderer,
    check_chat_templates,
    render_chats,
    special_of,
)
from tests.chat_places import MAIN, TOOL, with_templates

EACH, END = "{% for m in messages %}", "{% endfor %}"
TEMPLATES = {
    "blocks and white space": "\n" + EACH + "\n  {%- if true %}\n{{ m.role }}: x\n {% endif %}\n\n" + END + "\n",
    "tokens": EACH + "{{ bos_token }}{{ m.content + eos_token }}{{ unknown_token }}" + END,
    "prompt": "{{ messages | length }}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "json": "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ {'ü': '<&>'} | tojson }}",
    "continue": EACH + "{% if loop.index == 2 %}{% continue %}{% endif %}{{ m.content }}" + END,
    "break": EACH + "{{ m.role }}{% break %}" + END,
    "namespace": "{% set ns = namespace(n=0) %}" + EACH + "{% set ns.n = ns.n + 1 %}" + END + "{{ ns.n }}",
    "generation": EACH + "{% generation %}{% set x = m.role %}{{ x }}{% endgeneration %}{{ x }}" + END,
    "macro": "{% macro say(m) %}[{{ m.role }}] {{ m.content | trim }}{% endmacro %}{{ say(messages[-1]) }}",
    "tools": "{% if tools is none %}no tools{% endif %}{% if documents %}d{% endif %}{{ dict(a=1) }}",
    "date": "{{ strftime_now('%Y') }}",
    "strings": "{{ messages[0].content.split(' ')[-1][::-1] }}{{ 'a\\n' ~ 1 }}",
    "windows": "A\r\n{% if true %}\r\nB\r\n{% endif %}{{ 'x\r\ny' }}",
}


def checkpoint_with(tmp_path: Path, template: str) -> Path:
    source = with_templates(tmp_path / "m", "none")
    (source / MAIN).write_bytes(template.encode())
    return source


@pytest.mark.parametrize("kind", TEMPLATES)
def test_the_text_is_that_of_transformers(tmp_path: Path, kind: str) -> None:
    source = checkpoint_with(tmp_path, TEMPLATES[kind])
    tokenizer = AutoTokenizer.from_pretrained(str(source))
    for prompt in (True, False):
        rendered = render_chats(
            TEMPLATES[kind], special_of(tokenizer), CONVERSATIONS, "here", add_generation_prompt=prompt
        )
        assert [each.text for each in rendered] == [
            tokenizer.apply_chat_template([dict(m) for m in messages], tokenize=False, add_generation_prompt=prompt)
            for messages in CONVERSATIONS
        ]
    check_chat_templates(source)


@pytest.mark.parametrize(
    "template",
    [
        "{% for %}",
        "{% if true %}",
        "{{ raise_exception('no') }}",
        "{{ nothing.at.all }}",
        "{{ 1 / 0 }}",
        "{{ 'a' * (10 ** 10) }}",
        "{{ messages | no_such_filter }}",
        "{% include 'x' %}",
        "{{ messages.append(1) }}",
    ],
)
def test_a_template_that_renders_nothing_is_refused_by_name(tmp_path: Path, template: str) -> None:
    source = checkpoint_with(tmp_path, template)
    with pytest.raises(DamagedFileError, match="the chat template renders none of the usual conversations") as caught:
        check_chat_templates(source)
    assert str(source / MAIN) in caught.value.message and "remove it" in str(caught.value.hint)


@pytest.mark.parametrize(
    "template",
    [
        "{% if messages[0].role != 'system' %}{{ raise_exception('a system message is missing') }}{% endif %}x",
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system message') }}{% endif %}x",
        "{% if messages | length > 1 %}{{ raise_exception('one turn') }}{% endif %}x",
        "{% for part in messages[0].content %}{{ part.source_lang_code + part.text }}{% endfor %}",
        "{{ bos_token + messages[0].content }}",
    ],
)
def test_a_template_may_refuse_some_conversations(tmp_path: Path, template: str) -> None:
    check_chat_templates(checkpoint_with(tmp_path, template))


def test_a_token_of_the_tokenizers_class_is_known(tmp_path: Path) -> None:
    source = checkpoint_with(tmp_path, "{{ eos_token + messages[0].content }}")
    settings: dict[str, Any] = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings = {**settings, "tokenizer_class": "Qwen2Tokenizer"}
    del settings["eos_token"]
    (source / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    assert AutoTokenizer.from_pretrained(str(source)).eos_token is not None
    check_chat_templates(source)


def test_every_named_template_is_checked(tmp_path: Path) -> None:
    source = with_templates(tmp_path / "m", "named files")
    (source / TOOL).write_text("{% for %}", encoding="utf-8")
    with pytest.raises(DamagedFileError, match=r"tool_use\.jinja: the chat template renders none of the usual"):
        check_chat_templates(source)


def test_a_template_without_an_end_is_ended() -> None:
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with (
        ChatRenderer(endless, {}, "m: the chat template", seconds=3) as renderer,
        pytest.raises(DataError, match="m: the chat template takes longer than 3 s to render"),
    ):
        renderer.render(CONVERSATIONS)
