"""Checkpoints as public bug reports of other tools describe them."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from compact.base.errors import DamagedFileError, UnsupportedTokenizerError
from compact.base.files import read_json_object
from compact.vocabulary.tokenizer_json import bpe_model
from compact_edge.cli import main as cli
from tests.checkpoints import TEXTS, train_tokenizer, write_checkpoint
from tests.compact.sources.unusual_folders import change_weights, logits, opened


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_byte_order_mark(tmp_path: Path, name: str) -> None:
    """github.com/ThilinaRajapakse/simpletransformers/issues/1169: a JSON file saved by an editor of Windows."""
    model = write_checkpoint(tmp_path / "m")
    path = model / name
    if not path.is_file():
        path.write_text("{}", encoding="utf-8")
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    with pytest.raises(DamagedFileError, match=name) as caught:
        read_json_object(path)
    assert caught.value.hint is not None and "without a byte order mark" in caught.value.hint


def test_dropout_left_in_the_tokenizer() -> None:
    """github.com/huggingface/tokenizers/issues/644: BPE dropout, saved after training, changes the ids at random."""
    document = train_tokenizer()
    document["model"]["dropout"] = 0.1
    with pytest.raises(UnsupportedTokenizerError, match=r"dropout = 0\.1") as caught:
        bpe_model(document)
    assert caught.value.hint is not None and "model.dropout to null" in caught.value.hint
    document["model"]["dropout"] = 0.0  # the tokenizers library writes this too: no dropout
    assert bpe_model(document) is document["model"]


def test_weights_in_float64(tmp_path: Path) -> None:
    """Weights saved by NumPy are float64. Transformers reads them in the type of config.json."""
    model = write_checkpoint(tmp_path / "m")
    expected = logits(model)
    change_weights(model, lambda weights: {name: tensor.double() for name, tensor in weights.items()})
    source = opened(model, tmp_path)
    assert {ref.dtype for ref in source.tensors.values()} == {"F32"}
    assert source.note is not None and "F64" in source.note
    assert torch.equal(logits(source.directory), expected)


def test_tables_of_rotary_angles_in_the_weights(tmp_path: Path) -> None:
    """github.com/ggml-org/llama.cpp/issues/7046: old checkpoints store `inv_freq`, which Transformers computes."""
    model = write_checkpoint(tmp_path / "m")
    expected = logits(model)

    def with_tables(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tables = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(8) for layer in range(2)}
        return weights | tables

    change_weights(model, with_tables)
    source = opened(model, tmp_path)
    assert not any("inv_freq" in name for name in source.tensors)
    assert torch.equal(logits(source.directory), expected)


def with_a_token_for_images(model: Path) -> int:
    """Add `<image_soft_token>` as Gemma 3 1B has it: its id is the number of rows of the embedding."""
    rows = int(json.loads((model / "config.json").read_text(encoding="utf-8"))["vocab_size"])
    path = model / "tokenizer.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    entry = {**document["added_tokens"][0], "id": rows, "content": "<image_soft_token>"}
    document["added_tokens"].append(entry)
    path.write_text(json.dumps(document), encoding="utf-8")
    path = model / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["extra_special_tokens"] = {"image_token": "<image_soft_token>"}
    settings["image_token"] = "<image_soft_token>"
    path.write_text(json.dumps(settings), encoding="utf-8")
    return rows


def test_a_token_for_images_of_a_text_only_model(tmp_path: Path) -> None:
    """google/gemma-3-1b-it: 262,144 rows, and a tokenizer with 262,145 tokens."""
    model = write_checkpoint(tmp_path / "m")
    expected = logits(model)
    rows = with_a_token_for_images(model)
    whole = AutoTokenizer.from_pretrained(model)
    assert len(whole) == rows + 1
    source = opened(model, tmp_path)
    assert source.note is not None and "<image_soft_token>" in source.note
    made = AutoTokenizer.from_pretrained(source.directory)
    assert len(made) == rows
    assert made(TEXTS[0])["input_ids"] == whole(TEXTS[0])["input_ids"]
    assert torch.equal(logits(source.directory), expected)


def test_a_model_with_a_token_for_images_is_pruned_and_exported(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m")
    with_a_token_for_images(model)
    sizes = ["--vocab-size", "380", "--vocab-rank", "merges"]
    assert cli.run(["prune", str(model), *sizes, "--out", str(tmp_path / "pruned")]) == 0
    assert cli.run(["export", str(tmp_path / "pruned"), "--quant", "F32", "--out", str(tmp_path / "gguf")]) == 0
    assert cli.run(["export", str(model), "--quant", "F32", "--out", str(tmp_path / "whole")]) == 0
