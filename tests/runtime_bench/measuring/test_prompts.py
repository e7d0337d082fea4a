"""Prompts: the built-in ones, files of the user's, and chat templates against Transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from compact.base.errors import DataError, ModelNotFoundError
from exporters.gguf_writer.write import write_gguf
from runtime_bench.bench_artifact import read_artifact
from runtime_bench.measuring import prompts
from runtime_bench.measuring.prompts import Conversation, read_prompts, reference_text, render
from tests.checkpoints import write_checkpoint

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_the_built_in_prompts_are_of_four_kinds() -> None:
    found = {prompt.name: prompt for prompt in read_prompts()}
    assert list(found) == ["short", "document", "code", "chat"]
    assert len(found["chat"].messages) == 5
    assert "```python" in found["code"].messages[0]["content"]
    assert len(reference_text(list(found.values()))) > 6000


def with_template(tmp_path: Path, template: str | None) -> Path:
    checkpoint = write_checkpoint(tmp_path / "model")
    (checkpoint / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((checkpoint / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    if template is not None:
        settings["chat_template"] = template
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(settings))
    write_gguf(checkpoint, tmp_path / "model.gguf", "F16")
    return checkpoint


def test_a_conversation_is_rendered_as_by_transformers(tmp_path: Path) -> None:
    checkpoint = with_template(tmp_path, TEMPLATE)
    artifact = read_artifact(tmp_path / "model.gguf")
    chat = next(prompt for prompt in read_prompts() if prompt.name == "chat")
    expected = AutoTokenizer.from_pretrained(checkpoint).apply_chat_template(
        [dict(message) for message in chat.messages], add_generation_prompt=True, tokenize=False
    )
    assert render([chat], artifact) == {"chat": expected}
    assert expected.endswith("<|im_start|>assistant\n")


def test_without_a_template_the_messages_are_the_text(tmp_path: Path) -> None:
    with_template(tmp_path, None)
    messages = ({"role": "user", "content": "one"}, {"role": "assistant", "content": "two"})
    conversation = Conversation("x", None, messages)
    assert render([conversation], read_artifact(tmp_path / "model.gguf")) == {"x": "one\n\ntwo"}


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{% for %}", "{{ ''.__class__.__mro__.x.y }}"])
def test_a_template_that_fails_or_reaches_out_is_refused_with_a_way_out(tmp_path: Path, template: str) -> None:
    with_template(tmp_path, template)
    with pytest.raises(DataError, match="chat template") as caught:
        render([Conversation("x", None, ({"role": "user", "content": "a"},))], read_artifact(tmp_path / "model.gguf"))
    assert "--prompts" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("no json", "prompts.jsonl:2: not a line of JSON"),
        ("[1]", "prompts.jsonl:2: not a JSON object"),
        ('{"text": "a"}', "name must be"),
        ('{"name": "a\\u0007", "text": "b"}', "name must be"),
        ('{"name": "x", "text": "again"}', "a second prompt"),
        ('{"name": "a", "text": "  "}', "text must be"),
        ('{"name": "a", "text": "b", "messages": []}', "either text or messages"),
        ('{"name": "a", "messages": []}', "messages must be objects"),
        ('{"name": "a", "messages": [{"role": "tool", "content": "x"}]}', "messages must be objects"),
        ('{"name": "a", "messages": [{"role": "user"}]}', "messages must be objects"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"name": "x", "text": "fine"}\n' + line + "\n")
    with pytest.raises(DataError, match=said):
        read_prompts(path)


def test_a_file_without_prompts_and_one_that_is_absent(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="0 prompts"):
        read_prompts(tmp_path / "empty.jsonl")
    with pytest.raises(ModelNotFoundError):
        read_prompts(tmp_path / "absent.jsonl")


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 / 0 }}",
        "{{ range(10 ** 9) | list }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ nothing.at.all }}",
        "{% for",
    ],
)
def test_a_template_that_fails_is_the_artifacts_fault(tmp_path: Path, template: str) -> None:
    with_template(tmp_path, None)
    artifact = replace(read_artifact(tmp_path / "model.gguf"), chat_template=template)
    with pytest.raises(DataError, match="its chat template rejects the prompts"):
        render([Conversation("x", None, ({"role": "user", "content": "one"},))], artifact)


def test_a_template_that_tells_the_day_gives_the_same_prompt_every_day(tmp_path: Path) -> None:
    with_template(tmp_path, None)
    artifact = replace(
        read_artifact(tmp_path / "model.gguf"), chat_template="{{ strftime_now('%Y') }} {{ date_string }}"
    )
    conversation = Conversation("x", None, ({"role": "user", "content": "one"},))
    assert render([conversation], artifact) == {"x": "2025 01 Jan 2025"}


def test_a_template_without_an_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_template(tmp_path, None)
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    artifact = replace(read_artifact(tmp_path / "model.gguf"), chat_template=endless)
    monkeypatch.setattr(prompts, "RENDER_SECONDS", 3.0)
    with pytest.raises(DataError, match="takes longer than 3 s"):
        render([Conversation("x", None, ({"role": "user", "content": "one"},))], artifact)
