"""The tokenizer of a checkpoint is the one that Transformers gives, also after pruning."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from compact.base.errors import DamagedFileError, UnsupportedTokenizerError
from compact.sources.model_source import open_directory
from compact.vocabulary.loading import load_tokenizer, tokenizer_document, tokenizer_key, tokenizer_note
from compact_edge.cli import main as cli
from tests.checkpoints import TEXTS, write_checkpoint
from tests.compact.pruned_checkpoints import document, plan_for, prune_to
from tests.compact.tokenizer_edits import NAMED, PAD, edit, padded, truncated

SIZES = {"vocab_size": 330, "intermediate_size": 32, "method": "random"}
TEXT = "The quick brown fox doesn't jump 1234567 times; 12.50"


def reference(directory: Path) -> Any:
    return AutoTokenizer.from_pretrained(directory, local_files_only=True)


def rows(directory: Path) -> int:
    return int(document(directory, "config.json")["vocab_size"])


# 1. The state of a training run.


@pytest.mark.parametrize("changes", [{}, {"stride": 4}, {"direction": "Left", "stride": 2}], ids=str)
def test_truncation_cuts_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    source = write_checkpoint(tmp_path / "m")
    whole = reference(source)(TEXT)["input_ids"]
    truncated(source, **changes)
    assert reference(source)(TEXT)["input_ids"] == whole
    assert load_tokenizer(source).backend_tokenizer.encode(TEXT).ids == whole
    after = prune_to(source, tmp_path / "out", **SIZES)
    expected = reference(after)(TEXT)["input_ids"]
    assert Tokenizer.from_file(str(after / "tokenizer.json")).encode(TEXT).ids == expected
    assert reference(after).truncation_side == reference(source).truncation_side


@pytest.mark.parametrize(
    "changes",
    [{}, {"strategy": {"Fixed": 64}, "direction": "Left"}, {"pad_token": "<|im_end|>", "pad_id": 2}, {"pad_id": 9999}],
    ids=str,
)
def test_padding_has_the_new_id(tmp_path: Path, changes: dict[str, Any]) -> None:
    source = write_checkpoint(tmp_path / "m", pre="smollm")
    # Pruning moves the padding token, because it comes after tokens that are dropped.
    edit(source, "tokenizer_config.json", pad_token="<tool>")
    padded(source, **{"pad_token": "<tool>", "pad_id": 420, **changes})
    assert len(load_tokenizer(source).backend_tokenizer.encode("a").ids) == 1
    after = prune_to(source, tmp_path / "out", **SIZES)
    tokenizer = reference(after)
    assert tokenizer.pad_token == "<tool>"
    assert document(after)["padding"]["pad_id"] == tokenizer.pad_token_id == 329
    assert tokenizer.padding_side == reference(source).padding_side
    batch = tokenizer(["a", TEXT], padding=True)["input_ids"]
    assert max(max(ids) for ids in batch) < rows(after)
    alone = Tokenizer.from_file(str(after / "tokenizer.json")).encode_batch(["a", TEXT])
    assert max(max(encoding.ids) for encoding in alone) < rows(after)


# 2. Tokens that only some of the files know.


@pytest.mark.parametrize("where", NAMED)
def test_a_token_with_a_row_keeps_it(tmp_path: Path, where: str) -> None:
    source = write_checkpoint(tmp_path / "m", padding=16)
    NAMED[where][0](source)
    after = prune_to(source, tmp_path / "out", **SIZES)
    old, new = reference(source).get_vocab(), reference(after).get_vocab()
    assert old[PAD] == 421
    assert max(new.values()) < rows(after) == 330
    assert set(old) - set(document(source)["model"]["vocab"]) <= set(new)
    before, pruned = (load_file(d / "model.safetensors")["model.embed_tokens.weight"] for d in (source, after))
    for token, i in new.items():
        assert pruned[i].equal(before[old[token]]), token
    # tokenizer.json alone gives the same ids.
    alone = Tokenizer.from_file(str(after / "tokenizer.json"))
    assert alone.encode(f"a{PAD}b", add_special_tokens=False).ids == reference(after)(f"a{PAD}b")["input_ids"]
    assert reference(after).special_tokens_map == reference(source).special_tokens_map


@pytest.mark.parametrize("where", NAMED)
def test_a_token_without_a_row_is_refused_with_the_way_out(tmp_path: Path, where: str) -> None:
    source = write_checkpoint(tmp_path / "m")
    change, named = NAMED[where]
    change(source)
    assert reference(source).get_vocab()[PAD] == rows(source) == 421
    with pytest.raises(DamagedFileError, match=re.escape(f"{named}: token {PAD!r} has id 421")) as caught:
        plan_for(source, tmp_path, **SIZES)
    assert "resize_token_embeddings(len(tokenizer))" in str(caught.value.hint)


def test_the_way_out_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_checkpoint(tmp_path / "m")
    edit(source, "tokenizer_config.json", pad_token=PAD)
    (tmp_path / "text.txt").write_text(TEXT * 20)
    assert cli.run(["eval", str(source), "--text", str(tmp_path / "text.txt")]) == 65
    assert "resize_token_embeddings" in capsys.readouterr().err
    tokenizer, model = reference(source), AutoModelForCausalLM.from_pretrained(source)
    model.resize_token_embeddings(len(tokenizer))
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "resized")
    after = prune_to(tmp_path / "resized", tmp_path / "out", **SIZES)
    assert reference(after).pad_token_id == 329
    assert len(reference(after)) == rows(after)


def test_a_token_that_only_the_class_adds(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "m", "qwen2", pre="qwen2")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (source / name).read_text(encoding="utf-8").replace("<|endoftext|>", "<|other|>")
        (source / name).write_text(text, encoding="utf-8")
    assert reference(source).get_vocab()["<|endoftext|>"] == rows(source)  # the class's own unk_token
    with pytest.raises(DamagedFileError, match="the class Qwen2Tokenizer: token") as caught:
        plan_for(source, tmp_path, **SIZES)
    assert "set unk_token, eos_token and pad_token" in str(caught.value.hint)
    edit(source, "tokenizer_config.json", unk_token=None)
    assert len(reference(prune_to(source, tmp_path / "out", **SIZES))) == 330


def test_reserved_tokens_that_nothing_names_are_still_dropped(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "m", padding=16)
    names = {f"<|reserved_special_token_{n}|>": 421 + n for n in range(10)}
    edit(source, "added_tokens.json", **names)
    after = prune_to(source, tmp_path / "out", **SIZES)
    assert len(reference(after)) == rows(after) == 330
    assert document(after, "added_tokens.json") == {}


def test_added_tokens_json_changes_the_source(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "m", padding=16)

    def source_id() -> str:
        return open_directory(source, name="m", origin="m").id

    before = source_id()
    edit(source, "added_tokens.json", **{"<tool>": 420})  # tokenizer.json has this token, too
    assert source_id() == before
    edit(source, "added_tokens.json", **{PAD: 421})
    assert source_id() != before


def test_a_token_of_the_vocabulary_that_becomes_an_added_token_changes_the_source(tmp_path: Path) -> None:
    """An added token is cut out of the text first, so the same text splits differently."""
    source = write_checkpoint(tmp_path / "m")
    before = open_directory(source, name="m", origin="m").id
    text = "quick"
    ids = load_tokenizer(source)(text)["input_ids"]
    token = text[1]
    edit(source, "added_tokens.json", **{token: load_tokenizer(source).get_vocab()[token]})
    assert load_tokenizer(source)(text)["input_ids"] != ids
    assert open_directory(source, name="m", origin="m").id != before


# 3. The class of the tokenizer.


@pytest.mark.parametrize(
    ("family", "pre", "name", "expected"),
    [
        ("llama", "smollm", "GPT2Tokenizer", "gpt-2"),
        ("llama", "llama-bpe", "GPT2Tokenizer", "gpt-2"),
        ("llama", "llama-bpe", "Qwen2Tokenizer", "qwen2"),
        ("llama", "smollm", "LlamaTokenizer", "smollm"),  # Transformers takes the file, because it is byte-level
        ("qwen2", "smollm", "PreTrainedTokenizerFast", "qwen2"),
        ("qwen2", "qwen2", "Qwen2Tokenizer", "qwen2"),
    ],
)
def test_the_class_decides(tmp_path: Path, family: str, pre: str, name: str, expected: str) -> None:
    source = write_checkpoint(tmp_path / "m", family, pre=pre)
    edit(source, "tokenizer_config.json", tokenizer_class=name)
    assert plan_for(source, tmp_path, **SIZES).pre == expected
    assert (tokenizer_note(source) is None) == (pre == expected)
    after = prune_to(source, tmp_path / "out", **SIZES)
    old, new = reference(source), reference(after)
    alone = Tokenizer.from_file(str(after / "tokenizer.json"))
    same = 0
    for text in (TEXT, *TEXTS):
        normal = old.backend_tokenizer.normalizer
        text = normal.normalize_str(text) if normal is not None else text
        for line in text.splitlines(keepends=True):
            cut = new.tokenize(line)
            assert alone.encode(line, add_special_tokens=False).tokens == cut
            if set(old.tokenize(line)) <= new.get_vocab().keys():
                assert cut == old.tokenize(line)
                same += 1
    assert same


def test_a_class_without_equivalent_is_refused(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "m")
    edit(source, "tokenizer_config.json", tokenizer_class="GPT2Tokenizer", add_prefix_space=True)
    assert reference(source).tokenize("a")[0] == "Ġa"
    with pytest.raises(UnsupportedTokenizerError, match="add_prefix_space"):
        plan_for(source, tmp_path, **SIZES)


def test_where_both_agree_the_file_is_the_tokenizer(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "m", "qwen2", pre="qwen2", padding=4)
    assert tokenizer_document(source) == document(source)  # Transformers adds NFC, which no runtime has
    key = tokenizer_key(source)
    edit(source, "tokenizer_config.json", model_max_length=77, padding_side="left")
    assert tokenizer_key(source) == key
    edit(source, "tokenizer_config.json", unk_token=PAD)
    assert tokenizer_key(source) != key
