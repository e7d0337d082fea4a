"""The chat templates of a GGUF and of an ONNX folder are those that Transformers uses for the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from compact.base.errors import UnsafePathError
from compact.checkpoints.gguf_file import read_gguf
from compact.sources.from_gguf import read_gguf_checkpoint
from compact.vocabulary.tokenizer import load_tokenizer
from exporters.card import has_chat_template
from exporters.gate import Check
from exporters.gguf.artifact import checkpoint_id
from exporters.gguf.chat_check import check_chat
from exporters.gguf_writer.write import check_exportable, write_gguf
from exporters.llamacpp.engine import LlamaEngine
from exporters.onnx.genai_engine import GenaiEngine, write_vocabulary_folder
from exporters.onnx.write import check_tokenizer_files
from tests.chat_places import PLACES, TOOL, C, templates_of, with_templates

KEY = "tokenizer.chat_template"
CONVERSATION = [{"role": "user", "content": "hi"}]


def keys_of(path: Path) -> dict[str, Any]:
    return {key: value for key, value in read_gguf(path).values.items() if key.startswith(KEY)}


def gguf_of(checkpoint: Path, out: Path) -> Path:
    write_gguf(checkpoint, out, "F32", pre="gpt-2")
    return out


@pytest.mark.parametrize("place", PLACES)
def test_a_gguf_has_the_templates_of_transformers_and_gives_them_back(tmp_path: Path, place: str) -> None:
    source = with_templates(tmp_path / "source", place)
    expected = templates_of(source)
    path = gguf_of(source, tmp_path / "a.gguf")
    named = {name: text for name, text in expected.items() if name != "default"}
    keys = {f"{KEY}.{name}": text for name, text in named.items()}
    keys |= {f"{KEY}s": sorted(named)} if named else {}
    keys |= {KEY: expected["default"]} if "default" in expected else {}
    assert keys_of(path) == keys
    assert has_chat_template(source) == ("default" in expected)
    back = tmp_path / "back"
    back.mkdir()
    read_gguf_checkpoint(path, back)
    assert templates_of(back) == expected


def test_names_keep_their_spelling_and_order(tmp_path: Path) -> None:
    source = with_templates(tmp_path / "source", "jinja")
    folder = source / "additional_chat_templates"
    folder.mkdir()
    for name in ("rag-v2", "b", "tool_use", "a"):
        (folder / f"{name}.jinja").write_text(name, encoding="utf-8")
    keys = keys_of(gguf_of(source, tmp_path / "a.gguf"))
    assert keys[f"{KEY}s"] == ["a", "b", "rag-v2", "tool_use"]
    assert keys[f"{KEY}.rag-v2"] == "rag-v2"
    (folder / "no name.jinja").write_text("x", encoding="utf-8")
    for check in (check_exportable, check_tokenizer_files):
        with pytest.raises(UnsafePathError, match=r"no name\.jinja: chat template name 'no name' is not a plain name"):
            check(source)


def test_a_named_template_is_part_of_the_checkpoints_id(tmp_path: Path) -> None:
    source = with_templates(tmp_path / "source", "named files")
    before = checkpoint_id(source)
    (source / TOOL).write_text(C, encoding="utf-8")
    assert checkpoint_id(source) != before


@pytest.mark.parametrize("place", [place for place in PLACES if place != "none"])
def test_an_onnx_folder_has_the_templates_of_transformers(tmp_path: Path, place: str, onnx_fp32: Path) -> None:
    source = with_templates(tmp_path / "source", place)
    folder = write_vocabulary_folder(source, onnx_fp32, tmp_path / "folder")
    expected = templates_of(source)
    assert templates_of(folder) == expected
    if "default" in expected:
        # genai reads tokenizer_config.json first, and only text there.
        with GenaiEngine(folder, vocab_only=True) as engine:
            prompt = engine.chat_prompt(CONVERSATION)
        assert prompt == AutoTokenizer.from_pretrained(str(source)).apply_chat_template(CONVERSATION, tokenize=False)


def gate_of(checkpoint: Path, path: Path, unpruned: Path | None = None) -> list[Check]:
    with LlamaEngine(path, vocab_only=True) as engine:
        return check_chat(checkpoint, load_tokenizer(checkpoint), engine, unpruned)


@pytest.mark.parametrize("place", ["jinja beside an older text", "dict", "windows line ends"])
def test_the_gate_passes_the_right_templates(tmp_path: Path, place: str) -> None:
    source = with_templates(tmp_path / "source", place)
    (check,) = gate_of(source, gguf_of(source, tmp_path / "a.gguf"), source)
    assert check.passed and check.figures["conversations"] == 2
    other = with_templates(tmp_path / "other", "list without default")
    assert gate_of(source, tmp_path / "a.gguf", other)[0].passed is False
    (check,) = gate_of(other, tmp_path / "a.gguf")
    assert check.passed is False and "of the GGUF and of Transformers differ: default" in check.detail


def special_tokens_elsewhere(out: Path) -> Path:
    """BOS and EOS are named in special_tokens_map.json alone, as Transformers 4 wrote many checkpoints."""
    source = with_templates(out, "jinja")
    path = source / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    named = {key: settings.pop(key) for key in ("bos_token", "eos_token")}
    path.write_text(json.dumps(settings), encoding="utf-8")
    (source / "special_tokens_map.json").write_text(json.dumps(named), encoding="utf-8")
    template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    (source / "chat_template.jinja").write_text(template, encoding="utf-8")
    return source


def test_special_tokens_of_special_tokens_map_json(tmp_path: Path, onnx_fp32: Path) -> None:
    source = special_tokens_elsewhere(tmp_path / "source")
    expected = AutoTokenizer.from_pretrained(str(source)).apply_chat_template(CONVERSATION, tokenize=False)
    assert expected.startswith("<|im_start|>[user]")
    (check,) = gate_of(source, gguf_of(source, tmp_path / "a.gguf"))
    assert check.passed, check.detail
    with GenaiEngine(write_vocabulary_folder(source, onnx_fp32, tmp_path / "folder"), vocab_only=True) as engine:
        assert engine.chat_prompt(CONVERSATION) == expected


def test_the_gate_says_what_it_did_not_compare(tmp_path: Path) -> None:
    none = with_templates(tmp_path / "none", "none")
    assert gate_of(none, gguf_of(none, tmp_path / "none.gguf")) == []
    named = with_templates(tmp_path / "named", "list without default")
    (check,) = gate_of(named, gguf_of(named, tmp_path / "named.gguf"))
    assert check.passed and "none is the default" in check.detail
    other = with_templates(tmp_path / "other", "jinja")
    (other / "chat_template.jinja").write_text("{{ pad_token }}{{ messages[0].content }}", encoding="utf-8")
    (check,) = gate_of(other, gguf_of(other, tmp_path / "other.gguf"))
    assert check.passed is None and "which llama.cpp does not pass to it" in check.detail
