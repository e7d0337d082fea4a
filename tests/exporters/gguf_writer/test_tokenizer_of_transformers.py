"""Artifacts have the tokenizer that Transformers gives, and the gate compares like with like."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from compact.base.errors import DamagedFileError
from exporters.gguf.parity import check_tokenizer
from exporters.gguf_writer.write import write_gguf
from exporters.onnx.genai_engine import GenaiEngine, write_vocabulary_folder
from exporters.onnx.parity import check_onnx_tokenizer
from tests.checkpoints import TEXTS, llama_vocabularies, write_checkpoint
from tests.compact.pruned_checkpoints import prune_to
from tests.compact.tokenizer_edits import NAMED, PAD, Edit, edit, padded, truncated
from tests.sentencepiece_models import tokenizer_files, tokenizer_json

# The token inside text, and a text far longer than `truncated` allows. In NFC, because no runtime normalizes.
STRESS = [*(unicodedata.normalize("NFC", text) for text in TEXTS), f"a{PAD} b {PAD}{PAD}", "1234567 times " * 20]


def with_class(name: str) -> Edit:
    return lambda directory: edit(directory, "tokenizer_config.json", tokenizer_class=name)


CASES: dict[str, tuple[dict[str, Any], Edit]] = {
    "GPT2Tokenizer for SmolLM's file": ({"pre": "smollm"}, with_class("GPT2Tokenizer")),
    "GPT2Tokenizer for Llama 3's file": ({"pre": "llama-bpe"}, with_class("GPT2Tokenizer")),
    "the class of Qwen2 for SmolLM's file": ({"family": "qwen2", "pre": "smollm"}, lambda directory: None),
    "truncation": ({}, truncated),
    "truncation with a stride that cannot be": ({}, partial(truncated, stride=4)),
    "padding to a fixed length": ({}, partial(padded, strategy={"Fixed": 32}, direction="Left")),
    **{f"a token named by {name}": ({"padding": 16}, NAMED[name][0]) for name in NAMED},
}


def expected_ids(checkpoint: Path, texts: list[str]) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


@pytest.fixture(params=CASES)
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    settings, change = CASES[request.param]
    directory = write_checkpoint(tmp_path / "m", **settings)
    change(directory)
    return directory


def test_a_gguf_gives_the_ids_of_transformers(checkpoint: Path, tmp_path: Path) -> None:
    pruned = prune_to(checkpoint, tmp_path / "out", vocab_size=340, intermediate_size=32, method="random")
    files = [tmp_path / "unpruned.gguf", tmp_path / "pruned.gguf"]
    for directory, file in zip((checkpoint, pruned), files, strict=True):
        write_gguf(directory, file, "F32", vocab_only=True)
        check = check_tokenizer(directory, file, STRESS, unpruned=None if directory == checkpoint else checkpoint)
        assert check.passed, check.detail
        # Without NFC, no text differs, so none is excused.
        assert check.figures["runtime_own"] <= (2 if "qwen2" in (directory / "config.json").read_text() else 0)
    answers = llama_vocabularies(files, STRESS)
    for directory, answer in zip((checkpoint, pruned), answers, strict=True):
        assert answer["ids"] == expected_ids(directory, STRESS)


def test_an_onnx_folder_gives_the_ids_of_transformers(checkpoint: Path, onnx_fp32: Path, tmp_path: Path) -> None:
    folder = write_vocabulary_folder(checkpoint, onnx_fp32, tmp_path / "folder")
    with GenaiEngine(folder, vocab_only=True) as engine:
        texts = [text for text in STRESS if "\r" not in text]  # genai cuts some runs of white space otherwise
        assert engine.tokenize(texts) == expected_ids(checkpoint, texts)
    check = check_onnx_tokenizer(checkpoint, folder, STRESS, unpruned=None)
    assert check.passed, check.detail
    assert check.figures["runtime_own"] <= 4  # NUL, white space, and what is not in NFC


@pytest.mark.parametrize("name", ["LlamaTokenizer", "GemmaTokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("style", ["llama 2", "gemma"])
@pytest.mark.parametrize("model", [True, False], ids=["with tokenizer.model", "without"])
def test_sentencepiece_with_a_token_that_the_settings_add(tmp_path: Path, name: str, style: str, model: bool) -> None:
    directory = write_checkpoint(tmp_path / "m", tokenizer=tokenizer_json(style), padding=16)
    for file, content in tokenizer_files(style, model=model).items():
        (directory / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    edit(directory, "tokenizer_config.json", tokenizer_class=name, pad_token=PAD)
    pruned = prune_to(directory, tmp_path / "out", vocab_size=900, intermediate_size=32, method="random")
    texts = [f"a{PAD}", f"{PAD}{PAD}", "text"]
    for source in (directory, pruned):
        write_gguf(source, tmp_path / f"{source.name}.gguf", "F32", vocab_only=True)
        check = check_tokenizer(source, tmp_path / f"{source.name}.gguf", STRESS, unpruned=directory)
        assert check.passed, check.detail
        assert llama_vocabularies([tmp_path / f"{source.name}.gguf"], texts)[0]["ids"] == expected_ids(source, texts)


@pytest.mark.parametrize("where", NAMED)
def test_export_refuses_a_token_without_a_row(tmp_path: Path, onnx_fp32: Path, where: str) -> None:
    directory = write_checkpoint(tmp_path / "m")
    NAMED[where][0](directory)
    gguf = partial(write_gguf, directory, tmp_path / "m.gguf", "F32")
    onnx = partial(write_vocabulary_folder, directory, onnx_fp32, tmp_path / "folder")
    export: Callable[[], object]
    for export in (gguf, onnx):
        with pytest.raises(DamagedFileError, match=f"token '{PAD}' has id 421, but the embedding has 421 rows"):
            export()
    assert not (tmp_path / "m.gguf").exists()
