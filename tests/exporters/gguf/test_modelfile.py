"""The Modelfile: its template against the chat template, and what else it says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from exporters.gguf.chat_turns import find_turns
from exporters.gguf.modelfile import chat_turns, go_template, modelfile
from exporters.gguf_writer.write import write_gguf
from tests.checkpoints import write_checkpoint
from tests.exporters.gguf import go_template as go

# Chat templates in the manner of the families, written here: what they give is what counts.
_CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LLAMA3 = (
    "{{ bos_token }}{% set known = '26 Jul 2024' if date_string is not defined else date_string %}"
    "{% if messages[0].role == 'system' %}{% set s = messages[0].content | trim %}{% set messages = messages[1:] %}"
    "{% else %}{% set s = '' %}{% endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ known }}\n\n{{ s }}<|eot_id|>"
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_GEMMA = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
_GEMMA3 = (
    "{% set first = '' %}{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}"
    "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}<start_of_turn>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ first if loop.first else '' }}{{ m.content }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
_MISTRAL = (
    "{% if messages[0].role == 'system' %}{% set s = messages[0].content %}{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ s + '\n\n' if loop.last and s is defined else '' }}"
    "{{ m.content }}[/INST]{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
_ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
_THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
_BRACES = "{% for m in messages %}{{ '{{' }}{{ m.role }}}} {{ m.content }}\n{% endfor %}"
FAMILIES = {
    "chatml": _CHATML,
    "llama3": _LLAMA3,
    "gemma": _GEMMA,
    "gemma with a system message": _GEMMA3,
    "mistral": _MISTRAL,
    "zephyr": _ZEPHYR,
    "chatml that thinks": _THINKING,
    "braces": _BRACES,
}
# A template that looks at the words themselves, one that numbers its turns, one that refuses everything, one broken.
NOT_TURNS = {
    "by content": "{% for m in messages %}{{ m.content | upper }}\n{% endfor %}",
    "numbered": "{% for m in messages %}{{ loop.index }}: {{ m.content }}\n{% endfor %}",
    "by length": "{% for m in messages %}{{ m.content | length }}{{ m.content }}{% endfor %}",
    "refuses": "{{ raise_exception('no') }}",
    "broken": "{% for m in messages %}",
}

TURNS = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "It is 4,\nas far as I know."},
    {"role": "user", "content": "And {{ .Content }}, <b>then</b>?"},
]
SYSTEM = {"role": "system", "content": "Answer in verse."}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model")


def with_template(checkpoint: Path, template: str | None, **generation: Any) -> Path:
    """The checkpoint with another chat template and generation_config.json."""
    path = checkpoint / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("chat_template", None)
    if template is not None:
        config["chat_template"] = template
    path.write_text(json.dumps(config), encoding="utf-8")
    (checkpoint / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return checkpoint


def hugging_face(checkpoint: Path, messages: list[dict[str, str]]) -> str:
    from transformers import AutoTokenizer

    text: str = AutoTokenizer.from_pretrained(checkpoint).apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False, date_string="26 Jul 2024"
    )
    return text


def template_of(text: str) -> str:
    """The TEMPLATE of a Modelfile."""
    found = re.findall(r'^TEMPLATE """(.*?)"""$', text, re.DOTALL | re.MULTILINE)
    assert len(found) == 1
    return str(found[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_template_gives_what_the_chat_template_gives(checkpoint: Path, tmp_path: Path, family: str) -> None:
    model = with_template(checkpoint, FAMILIES[family])
    artifact = tmp_path / "model-71K-F32.gguf"
    write_gguf(model, artifact, "F32")
    text = modelfile(artifact, model)
    assert "FROM ./model-71K-F32.gguf\n" in text
    assert f"# Turns: {family.split()[0] if family != 'braces' else 'of its own kind'}, equal to" in text
    template = template_of(text)
    for messages in (TURNS[:1], TURNS):
        assert go.render(template, system="", messages=messages) == hugging_face(model, messages)
        if family == "gemma":
            assert "SYSTEM is not used" in text
            continue
        expected = hugging_face(model, [SYSTEM, *messages])
        # Ollama leaves a system message among the messages and gives its text apart as well.
        assert go.render(template, system=SYSTEM["content"], messages=[SYSTEM, *messages]) == expected


def test_an_answer_that_was_begun_is_continued(checkpoint: Path) -> None:
    turns = chat_turns(with_template(checkpoint, _CHATML))
    assert turns is not None
    template = go_template(turns)
    assert template is not None
    begun = go.render(template, system="", messages=TURNS[:2])
    assert begun.endswith("<|im_start|>assistant\nIt is 4,\nas far as I know.")


@pytest.mark.parametrize("kind", [*NOT_TURNS, "absent"])
def test_a_template_that_is_more_than_turns_is_left_to_ollama(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    model = with_template(checkpoint, NOT_TURNS.get(kind))
    artifact = tmp_path / "a.gguf"
    write_gguf(model, artifact, "F32")
    text = modelfile(artifact, model)
    assert 'TEMPLATE "' not in text and "Ollama looks for one itself" in text
    assert 'PARAMETER stop "<|im_end|>"' in text


def test_text_that_a_modelfile_cannot_hold() -> None:
    def render(messages: Any) -> str:
        return "".join(f'"""{m["role"]}\n{m["content"]}\n' for m in messages)

    turns = find_turns(render)
    assert turns is not None and go_template(turns) is None


def test_parameters(checkpoint: Path, tmp_path: Path) -> None:
    settings = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05, "min_p": True}
    model = with_template(checkpoint, _CHATML, eos_token_id=[2, 0, 99999], **settings)
    artifact = tmp_path / "a.gguf"
    write_gguf(model, artifact, "F32")
    lines = modelfile(artifact, model).splitlines()
    assert [line for line in lines if line.startswith("PARAMETER")] == [
        "PARAMETER num_ctx 256",
        'PARAMETER stop "<|im_end|>"',
        'PARAMETER stop "<|endoftext|>"',
        "PARAMETER temperature 0.6",
        "PARAMETER top_k 20",
        "PARAMETER top_p 0.95",
        "PARAMETER repeat_penalty 1.05",
    ]
    greedy = modelfile(artifact, with_template(checkpoint, _CHATML, do_sample=False, temperature=0.6))
    assert greedy.endswith("PARAMETER temperature 0\n")


def test_bos_is_left_to_the_runtime(tmp_path: Path) -> None:
    """llama.cpp and Ollama put BOS before a prompt themselves where the file says so: a second one would be wrong."""
    for bos in (True, False):
        model = with_template(write_checkpoint(tmp_path / f"bos-{bos}", bos=bos), _LLAMA3)
        artifact = tmp_path / f"{bos}.gguf"
        write_gguf(model, artifact, "F32")
        template = template_of(modelfile(artifact, model))
        rendered = hugging_face(model, TURNS)
        assert rendered.startswith("<|im_start|>")
        expected = rendered.removeprefix("<|im_start|>") if bos else rendered
        assert go.render(template, system="", messages=TURNS) == expected


def test_parts_are_named(checkpoint: Path, tmp_path: Path) -> None:
    model = with_template(checkpoint, _CHATML)
    artifact = tmp_path / "a.gguf"
    write_gguf(model, artifact, "F32")
    text = modelfile(artifact, model, ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"])
    assert "#   llama-gguf-split --merge a-00001-of-00002.gguf a.gguf\n" in text
    assert "#   a-00002-of-00002.gguf\n" in text and "FROM ./a.gguf\n" in text
