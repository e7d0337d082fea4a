"""`--pre`: the pre-tokenizer that a GGUF or a tokenizer.json does not name."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from compact.base.cache import Cache
from compact.base.errors import UnsupportedTokenizerError, UsageError
from compact.sources.model_source import ModelSource, open_source
from compact.vocabulary.pretokenizers import OTHER_NAMES, PRE_TOKENIZERS
from exporters.gguf_writer.write import write_gguf
from exporters.llamacpp.engine import LlamaEngine
from exporters.opened import named_artifact
from tests.checkpoints import TEXTS, llama_vocabularies, train_tokenizer, write_checkpoint
from tests.compact.sources.gguf_edits import rewritten


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("pre") / "hf", "qwen2", pre="qwen2")


@pytest.fixture(scope="module")
def whole(checkpoint: Path) -> Path:
    path = checkpoint.parent / "m.gguf"
    write_gguf(checkpoint, path, "F16")
    return path


def opened(path: Path, tmp_path: Path, pre: str | None = None) -> ModelSource:
    return open_source(str(path), Cache(tmp_path / "cache", [], []), pre=pre)


def ids(directory: Path) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]


@pytest.mark.parametrize("named", [None, "default", "my-tokenizer"])
def test_a_gguf_without_a_known_name(whole: Path, checkpoint: Path, tmp_path: Path, named: str | None) -> None:
    changed = rewritten(whole, tmp_path / "changed.gguf", tokenizer__ggml__pre=named)
    with pytest.raises(UnsupportedTokenizerError) as caught:
        opened(changed, tmp_path)
    assert caught.value.message.startswith(f"{changed}: ")
    assert caught.value.hint is not None and "--pre" in caught.value.hint and "qwen2" in caught.value.hint
    source = opened(changed, tmp_path, "qwen2")
    assert ids(source.directory) == ids(checkpoint)
    assert source.pre == "qwen2"
    own = "names none" if named is None else f"names '{named}'"
    assert source.note == f"changed.gguf is read with the pre-tokenizer 'qwen2' (--pre); the file {own}"
    # In Transformers, every model of type qwen2 has the pre-tokenizer qwen2.
    with pytest.raises(UsageError, match="has the pre-tokenizer 'qwen2'"):
        opened(changed, tmp_path, "llama-v3")


def test_an_alias_of_llama_cpp(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "hf", "llama", tokenizer=train_tokenizer("llama-bpe"))
    write_gguf(checkpoint, tmp_path / "whole.gguf", "F16", pre="llama-bpe")
    changed = rewritten(tmp_path / "whole.gguf", tmp_path / "changed.gguf", tokenizer__ggml__pre="default")
    source = opened(changed, tmp_path, "llama-v3")
    assert source.pre == "llama-bpe"
    assert ids(source.directory) == ids(checkpoint)
    assert ids(opened(changed, tmp_path, "gpt-2").directory) != ids(checkpoint)


def test_llama_cpp_uses_the_given_name_too(whole: Path, checkpoint: Path, tmp_path: Path) -> None:
    changed = rewritten(whole, tmp_path / "changed.gguf", tokenizer__ggml__pre="default")
    with LlamaEngine(changed, vocab_only=True) as plain, LlamaEngine(changed, vocab_only=True, pre="qwen2") as told:
        assert plain.tokenize(TEXTS, parse_special=True) != ids(checkpoint)
        assert told.tokenize(TEXTS, parse_special=True) == ids(checkpoint)
    artifact = named_artifact(str(changed), "qwen2")
    assert artifact is not None and artifact.format.opening_notes(artifact.path) == []
    plainly = named_artifact(str(changed))
    assert plainly is not None and "--pre" in plainly.format.opening_notes(changed)[0]


def test_names_that_do_not_apply(whole: Path, checkpoint: Path, tmp_path: Path) -> None:
    for attempt in (opened, lambda path, _, pre: named_artifact(str(path), pre)):
        with pytest.raises(UsageError, match="--pre 'qwen-2'"):
            attempt(whole, tmp_path, "qwen-2")
    with pytest.raises(UsageError, match="--pre 'tekken'"):  # llama.cpp has it, but a GGUF cannot be read with it
        opened(whole, tmp_path, "tekken")
    with pytest.raises(UsageError, match="has the pre-tokenizer 'qwen2'") as caught:
        opened(checkpoint, tmp_path, "gpt-2")
    assert caught.value.hint == "leave out --pre"
    assert opened(checkpoint, tmp_path, "qwen2").pre == "qwen2"
    with pytest.raises(UsageError, match="its own tokenizer"):
        named_artifact(str(checkpoint), "qwen2")


def unknown_tokenizer() -> dict[str, Any]:
    """The pattern of qwen2 in other words: the ids are equal, but the table does not have it."""
    document = copy.deepcopy(train_tokenizer("qwen2"))  # its parts belong to the table
    split = document["pre_tokenizer"]["pretokenizers"][0]
    split["pattern"]["Regex"] = f"(?:{split['pattern']['Regex']})"
    return document


def test_a_checkpoint_whose_pre_tokenizer_is_not_known(tmp_path: Path) -> None:
    from compact_edge.cli import main as cli

    model = write_checkpoint(tmp_path / "hf", "llama", tokenizer=unknown_tokenizer())
    line = ["export", str(model), "--quant", "F32", "--no-cache"]
    assert cli.run([*line, "--out", str(tmp_path / "a")]) == 65
    assert cli.run([*line, "--out", str(tmp_path / "b"), "--pre", "smollm"]) == 3  # the parity gate compares
    assert cli.run([*line, "--out", str(tmp_path / "c"), "--pre", "qwen2"]) == 0
    assert not (tmp_path / "b").exists()
    (path,) = (tmp_path / "c").glob("*.gguf")
    (vocabulary,) = llama_vocabularies([path], TEXTS)
    assert vocabulary["ids"] == ids(model)


def test_prune_records_the_name_for_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from compact_edge.cli import main as cli

    model = write_checkpoint(tmp_path / "hf", "llama", tokenizer=unknown_tokenizer())
    prune = ["prune", str(model), "--vocab-size", "380", "--vocab-rank", "merges", "--no-cache"]
    assert cli.run([*prune, "--out", str(tmp_path / "none")]) == 65
    err = capsys.readouterr().err
    assert "--pre" in err and "compact/vocabulary" not in err
    assert cli.run([*prune, "--out", str(tmp_path / "pruned"), "--pre", "qwen2"]) == 0
    assert json.loads((tmp_path / "pruned" / "plan.json").read_text(encoding="utf-8"))["pre"] == "qwen2"
    assert cli.run(["export", str(tmp_path / "pruned"), "--out", str(tmp_path / "gguf"), "--no-cache"]) == 0


def test_a_wrong_name_fails_the_gate_of_a_pruned_model_too(tmp_path: Path) -> None:
    """The GGUF of the unpruned model has the same wrong name, so it must not excuse the differences."""
    from compact_edge.cli import main as cli

    model = write_checkpoint(tmp_path / "hf", "llama", tokenizer=unknown_tokenizer())
    sizes = ["--vocab-size", "380", "--vocab-rank", "merges", "--pre", "smollm"]
    assert cli.run(["prune", str(model), *sizes, "--out", str(tmp_path / "pruned")]) == 0
    line = ["export", str(tmp_path / "pruned"), "--quant", "F32"]
    assert cli.run([*line, "--source", str(model), "--pre", "smollm", "--out", str(tmp_path / "a")]) == 3
    assert cli.run([*line, "--out", str(tmp_path / "b")]) == 3
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_the_name_is_compared_with_the_tokenizer_of_transformers(tmp_path: Path) -> None:
    """model_type qwen2 has a pre-tokenizer of its own, whatever tokenizer.json says."""
    model = write_checkpoint(tmp_path / "hf", "qwen2", tokenizer=train_tokenizer("gpt-2"))
    assert opened(model, tmp_path, "qwen2").pre == "qwen2"
    with pytest.raises(UsageError, match="has the pre-tokenizer 'qwen2'"):
        opened(model, tmp_path, "gpt-2")


def test_llama_cpp_knows_every_name(tmp_path: Path, checkpoint: Path) -> None:
    names = sorted({*OTHER_NAMES, *(name for row in PRE_TOKENIZERS for name in (row.name, *row.aliases))})
    paths = []
    for name in names:
        paths.append(tmp_path / f"{name}.gguf")
        write_gguf(checkpoint, paths[-1], "F16", pre=name, vocab_only=True)
    assert [answer["n_vocab"] for answer in llama_vocabularies(paths, [])] == [421] * len(names)
