"""Known differences of llama.cpp's tokenizer, which the gate recognises without an unpruned model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compact_edge.cli import main as cli
from exporters.gguf.known_differences import KNOWN_DIFFERENCES
from exporters.gguf.parity import check_tokenizer
from exporters.gguf_writer.write import write_gguf
from tests.checkpoints import TEXTS, USER_DEFINED, llama_vocabularies, train_tokenizer, write_checkpoint
from tests.compact_edge.running import assert_error
from tests.sentencepiece_models import MARK, tokenizer_files, tokenizer_json
from tests.vocabularies import write_tokenizer, write_vocabulary

Document = dict[str, Any]
FLAGS = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}


def entry_of(document: Document, text: str) -> dict[str, Any]:
    entry: dict[str, Any] = next(entry for entry in document["added_tokens"] if entry["content"] == text)
    return entry


def added(document: Document, text: str, **flags: bool) -> None:
    ids = [*document["model"]["vocab"].values(), *(entry["id"] for entry in document["added_tokens"])]
    document["added_tokens"].append({"id": max(ids) + 1, "content": text, "special": False, **FLAGS, **flags})


def plain(document: Document, text: str) -> None:
    """A token of the vocabulary that merging never reaches."""
    last = entry_of(document, USER_DEFINED)
    document["model"]["vocab"][text] = last["id"]
    last["id"] += 1


STRIPS = "white space beside an added token stays"
KINDS = "control tokens by their text"
# What is changed in tokenizer.json, texts on which llama.cpp differs, and the name of the difference.
CASES: dict[str, tuple[Callable[[Document], Any], list[str], str]] = {
    "rstrip": (lambda d: entry_of(d, USER_DEFINED).update(rstrip=True), [f"a {USER_DEFINED}  b"], STRIPS),
    "lstrip": (lambda d: entry_of(d, USER_DEFINED).update(lstrip=True), [f"a  {USER_DEFINED} b"], STRIPS),
    "single_word": (lambda d: entry_of(d, USER_DEFINED).update(single_word=True), [f"a{USER_DEFINED}b"], STRIPS),
    "an end of text that is not special": (lambda d: added(d, "</s>"), ["one </s> two"], KINDS),
    "an end of text that is a plain token": (lambda d: plain(d, "</s>"), ["one </s> two"], KINDS),
    "the form of a control token": (lambda d: added(d, "<|TURN|>"), ["one <|TURN|> two"], KINDS),
    "NFC": (lambda d: d.update(normalizer={"type": "NFC"}), ["cafe\u0301"], "how it handles text"),
}


def both(document: Document) -> None:
    entry_of(document, USER_DEFINED).update(rstrip=True)
    document["normalizer"] = {"type": "NFC"}


CASES["rstrip and NFC in one text"] = (both, [f"e\u0301 {USER_DEFINED}  b"], f"no NFC, {STRIPS}")


@pytest.mark.parametrize("case", CASES)
def test_a_known_difference_passes_and_is_named(tmp_path: Path, case: str) -> None:
    change, texts, name = CASES[case]
    document = train_tokenizer("qwen2")
    change(document)
    model = write_checkpoint(tmp_path / "hf", tokenizer=document)
    write_gguf(model, tmp_path / "m.gguf", "F16", vocab_only=True)
    check = check_tokenizer(model, tmp_path / "m.gguf", texts, unpruned=None)
    assert check.passed, check.detail
    assert check.figures["different"] == 0 and check.figures["runtime_own"] >= 1
    assert "by a known rule" in check.detail and name in check.detail
    # With the unpruned pair, the verdict is the same.
    assert check_tokenizer(model, tmp_path / "m.gguf", texts, unpruned=model).figures == check.figures


@pytest.mark.parametrize("case", ["rstrip", "NFC", "an end of text that is not special"])
def test_another_difference_in_the_same_tokenizer_still_fails(tmp_path: Path, case: str) -> None:
    change, texts, _ = CASES[case]
    document = train_tokenizer("qwen2")
    change(document)
    model = write_checkpoint(tmp_path / "hf", tokenizer=document)
    write_gguf(model, tmp_path / "m.gguf", "F16", pre="llama-bpe", vocab_only=True)
    check = check_tokenizer(model, tmp_path / "m.gguf", [*texts, "12345678"], unpruned=None)
    assert not check.passed
    document["model"]["vocab"]["a"], document["model"]["vocab"]["b"] = (
        document["model"]["vocab"]["b"],
        document["model"]["vocab"]["a"],
    )
    (model / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    write_gguf(model, tmp_path / "n.gguf", "F16", vocab_only=True)
    right = write_checkpoint(tmp_path / "right", tokenizer={**document, "model": train_tokenizer("qwen2")["model"]})
    assert not check_tokenizer(right, tmp_path / "n.gguf", texts, unpruned=None).passed


def test_a_token_that_the_exporter_gave_a_wrong_kind_is_not_excused(tmp_path: Path) -> None:
    """`<tool>` has neither the name nor the form of a control token."""
    document = train_tokenizer("qwen2")
    entry_of(document, USER_DEFINED).update(special=True)
    other = write_checkpoint(tmp_path / "other", tokenizer=document)
    write_gguf(other, tmp_path / "m.gguf", "F16", vocab_only=True)
    model = write_checkpoint(tmp_path / "hf", tokenizer=train_tokenizer("qwen2"))
    check = check_tokenizer(model, tmp_path / "m.gguf", [f"a {USER_DEFINED} b"], unpruned=None)
    assert not check.passed


@pytest.mark.parametrize("style", ["metaspace first", "metaspace always", "gemma"])
def test_sentencepiece(tmp_path: Path, style: str) -> None:
    document = tokenizer_json(style)
    if style == "gemma":  # a run of spaces as an added token, spelled with marks
        vocab = document["model"]["vocab"]
        document["added_tokens"].append(
            {"id": vocab[MARK * 2], "content": MARK * 2, "special": False, **FLAGS, "normalized": True}
        )
    model = write_tokenizer(tmp_path / "m", document, tokenizer_files(style, model=True))
    artifact = write_vocabulary(model, tmp_path / "m.gguf")
    texts = [*TEXTS, f"a{MARK * 3}b  c", f" {MARK}x"]
    check = check_tokenizer(model, artifact, texts, unpruned=None)
    assert check.passed, check.detail
    assert check.figures["runtime_own"] >= 1 and "by a known rule" in check.detail


def test_names_are_unique() -> None:
    assert len({each.name for each in KNOWN_DIFFERENCES}) == len(KNOWN_DIFFERENCES)


def test_prune_then_export_and_build_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = train_tokenizer("qwen2")
    entry_of(document, USER_DEFINED).update(rstrip=True)
    model = write_checkpoint(tmp_path / "hf", "qwen2", tokenizer=document)
    prune = ["prune", str(model), "--vocab-size", "380", "--vocab-rank", "merges", "--out", str(tmp_path / "pruned")]
    assert cli.run([*prune, "--no-cache"]) == 0
    for name, source in (("a", tmp_path / "pruned"), ("b", model)):
        capsys.readouterr()
        assert cli.run(["export", str(source), "--quant", "Q8_0", "--out", str(tmp_path / name), "--no-cache"]) == 0
        assert STRIPS in capsys.readouterr().out
    (path,) = (tmp_path / "b").glob("*.gguf")
    (found,) = llama_vocabularies([path], [f"a {USER_DEFINED}  b"])
    assert found["n_vocab"] == 421


def test_the_source_shows_what_no_rule_explains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pair of the unpruned model decides, if the model that the user names has the sha256 of the plan."""
    monkeypatch.setattr("exporters.gguf.known_differences.KNOWN_DIFFERENCES", ())
    document = train_tokenizer("qwen2")
    entry_of(document, USER_DEFINED).update(rstrip=True)
    model = write_checkpoint(tmp_path / "hf", "qwen2", tokenizer=document)
    other = write_checkpoint(tmp_path / "other", "qwen2", tokenizer=train_tokenizer("qwen2"))
    pruned = str(tmp_path / "pruned")
    prune = ["prune", str(model), "--vocab-size", "380", "--vocab-rank", "merges", "--out", pruned, "--no-cache"]
    assert cli.run(prune) == 0
    export = ["export", pruned, "--quant", "F16", "--no-cache", "--out", str(tmp_path / "gguf")]
    assert_error(capsys, export, 3, "parity gate failed, tokenizer", "name the unpruned model with --source")
    assert_error(capsys, [*export, "--source", str(other)], 65, "was not pruned from it, but from hf")
    assert_error(capsys, ["export", str(model), *export[2:], "--source", str(model)], 2, "has no plan.json")
    assert not (tmp_path / "gguf").exists()
    assert cli.run([*export, "--source", str(model)]) == 0
    assert "for the unpruned model too" in capsys.readouterr().out


def test_the_source_is_found_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("exporters.gguf.known_differences.KNOWN_DIFFERENCES", ())
    monkeypatch.setenv("COMPACT_EDGE_CACHE", str(tmp_path / "cache"))
    document = train_tokenizer("qwen2")
    entry_of(document, USER_DEFINED).update(rstrip=True)
    model = write_checkpoint(tmp_path / "hf", "qwen2", tokenizer=document)
    pruned = str(tmp_path / "pruned")
    assert cli.run(["prune", str(model), "--vocab-size", "380", "--vocab-rank", "merges", "--out", pruned]) == 0
    assert not any(str(tmp_path).encode() in path.read_bytes() for path in Path(pruned).iterdir())
    export = ["export", pruned, "--quant", "F16", "--out"]
    assert cli.run([*export, str(tmp_path / "a")]) == 0
    assert "for the unpruned model too" in capsys.readouterr().out
    config = model / "config.json"  # another model at the same place does not count
    config.write_text(config.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert_error(capsys, [*export, str(tmp_path / "b")], 3, "parity gate failed, tokenizer", "--source")
