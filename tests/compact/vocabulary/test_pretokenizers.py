"""The pre-tokenizer table: both directions, what must not matter, what is refused, and ids against llama.cpp."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from compact.base.errors import UnsupportedTokenizerError
from compact.vocabulary.pretokenizers import PRE_TOKENIZERS, find, loses_nfc, pre_name, tokenizer_parts
from exporters.gguf_writer.write import write_gguf
from tests.checkpoints import TEXTS, train_tokenizer, write_checkpoint

NAMES = [row.name for row in PRE_TOKENIZERS]


def document(pre: str) -> dict[str, Any]:
    parts = tokenizer_parts(pre)
    model = {"type": "BPE", "vocab": {}, "merges": [], "ignore_merges": parts.pop("ignore_merges")}
    return {**parts, "model": model}


@pytest.mark.parametrize("name", NAMES)
def test_the_table_reads_both_ways(name: str) -> None:
    assert pre_name(document(name)) == name


def test_names_and_aliases_are_unique() -> None:
    names = [name for row in PRE_TOKENIZERS for name in (row.name, *row.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_change_ids_does_not_matter(name: str) -> None:
    changed = copy.deepcopy(document(name))
    steps = changed["pre_tokenizer"].get("pretokenizers", [changed["pre_tokenizer"]])
    for step in steps:
        step.pop("trim_offsets", None)
        if step["type"] == "Split":
            step.pop("invert")
        elif step["type"] == "ByteLevel" and step["use_regex"]:
            step.pop("use_regex")  # older files do not have the key; its default is true
    changed["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [{"type": "Sequence", "pretokenizers": steps}]}
    changed["normalizer"] = {"type": "Sequence", "normalizers": []}
    if not changed["model"]["ignore_merges"]:
        del changed["model"]["ignore_merges"]
    assert pre_name(changed) == name


def test_a_split_that_removes_the_rest_is_the_same_split() -> None:
    changed = document("qwen2")
    changed["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed", invert=True)
    assert pre_name(changed) == "qwen2"


def test_nfc_is_accepted_and_reported() -> None:
    plain = document("qwen2")
    assert not loses_nfc(plain)
    plain["normalizer"] = {"type": "NFC"}
    assert pre_name(plain) == "qwen2"
    assert loses_nfc(plain)


def test_ignore_merges_separates_llama_bpe_from_smaug() -> None:
    changed = document("llama-bpe")
    changed["model"]["ignore_merges"] = False
    assert pre_name(changed) == "smaug-bpe"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model": {"type": "Unigram", "vocab": []}}, "Unigram"),
        ({"model": {"type": "WordPiece", "vocab": {}}}, "WordPiece"),
        ({"model": {"type": "BPE", "byte_fallback": True}}, "SentencePiece"),
        ({"model": {"type": "BPE", "end_of_word_suffix": "</w>"}}, "end_of_word_suffix"),
        ({"model": None}, "model is missing"),
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
        ({"pre_tokenizer": None}, "pre_tokenizer"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}}, "pre_tokenizer"),
        ({"pre_tokenizer": {"type": "Sequence"}}, "no list"),
        ({"pre_tokenizer": ["ByteLevel"]}, "not an object"),
    ],
)
def test_refusals_name_the_cause(change: dict[str, Any], word: str) -> None:
    with pytest.raises(UnsupportedTokenizerError, match=word):
        pre_name({**document("gpt-2"), **change})


def test_an_unknown_regex_lists_the_known_names() -> None:
    changed = document("qwen2")
    changed["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"\S+"}
    with pytest.raises(UnsupportedTokenizerError) as caught:
        pre_name(changed)
    assert caught.value.hint is not None
    assert all(name in caught.value.hint for name in NAMES)


def test_an_unknown_name_lists_the_known_names() -> None:
    with pytest.raises(UnsupportedTokenizerError) as caught:
        find("tekken")
    assert caught.value.hint is not None and "llama-bpe" in caught.value.hint


def test_ids_equal_llama_cpp_for_every_name_and_alias(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    from tests.checkpoints import llama_vocabularies

    cases, paths = [], []
    for row in PRE_TOKENIZERS:
        tokenizer = train_tokenizer(row.name, vocab_size=600)
        # Tokens that no merge makes: only `ignore_merges` reaches them.
        tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:150]
        checkpoint = write_checkpoint(tmp_path / row.name, tokenizer=tokenizer)
        expected = [Tokenizer.from_str(json.dumps(tokenizer)).encode(text).ids for text in TEXTS]
        for name in (row.name, *row.aliases):
            paths.append(tmp_path / f"{name}.gguf")
            write_gguf(checkpoint, paths[-1], "F16", pre=name)
            cases.append((name, expected))
    for (name, expected), answer in zip(cases, llama_vocabularies(paths, TEXTS), strict=True):
        assert answer["ids"] == expected, name


@pytest.mark.slow
@pytest.mark.parametrize(("family", "folder", "pre"), [("qwen2", "qwen2", "qwen2"), ("llama", "llama3", "llama-bpe")])
def test_ids_equal_llama_cpp_with_real_tokenizers(
    tmp_path: Path, data_dir: Path, family: str, folder: str, pre: str
) -> None:
    pytest.importorskip("llama_cpp")
    from tests.checkpoints import llama_vocabularies

    tokenizer = json.loads((data_dir / "tokenizers" / folder / "tokenizer.json").read_text(encoding="utf-8"))
    checkpoint = write_checkpoint(tmp_path / "model", family, tokenizer=tokenizer, bos_token_id=None, eos_token_id=None)
    names = json.loads((data_dir / "tokenizers" / folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    info = write_gguf(checkpoint, tmp_path / "model.gguf", "Q8_0")
    assert info.pre == pre
    hf = Tokenizer.from_str(json.dumps(tokenizer))
    (answer,) = llama_vocabularies([info.path], TEXTS)
    assert answer["ids"] == [hf.encode(text, add_special_tokens=False).ids for text in TEXTS]
    assert answer["add_bos"] == (hf.encode("a").ids != hf.encode("a", add_special_tokens=False).ids)


def test_gemma_is_not_pre_tokenized(data_dir: Path) -> None:
    tokenizer = json.loads((data_dir / "tokenizers" / "gemma4" / "tokenizer.json").read_text(encoding="utf-8"))
    assert pre_name(tokenizer) == "default"
