"""Checkpoints as public bug reports of other tools describe them."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest
import torch

from compact.base.errors import DamagedFileError, UnsupportedTokenizerError
from compact.base.files import read_json_object
from compact.vocabulary.tokenizer_json import bpe_model
from tests.checkpoints import train_tokenizer, write_checkpoint
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
