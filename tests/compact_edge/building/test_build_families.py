"""The whole road for what is particular to other families: SentencePiece vocabularies, GeGLU, windows, multimodal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import Tokenizer

from compact.base.progress import SILENT
from compact.checkpoints.gguf_file import read_gguf
from compact.forward.evaluate import evaluate_checkpoint
from compact_edge.cli import main as cli
from exporters.gguf.scoring import evaluate_gguf
from exporters.gguf_writer.write import write_gguf
from tests.checkpoints import TEXTS, write_checkpoint
from tests.exporters.onnx_graphs import without_child
from tests.sentencepiece_models import tokenizer_files, tokenizer_json
from tests.small_builds import Workshop


@pytest.mark.parametrize(
    ("family", "style", "sizes"),
    [("gemma3_text", "gemma", {"bos_token_id": 1, "pad_token_id": 0}), ("mistral", "llama 2", {"sliding_window": 100})],
)
def test_a_sentencepiece_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any, family: str, style: str, sizes: dict[str, int]
) -> None:
    shop = Workshop(tmp_path / "shop", family=family, tokenizer=tokenizer_json(style), **sizes)
    for name, content in tokenizer_files(style).items():
        (shop.model / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.setenv("COMPACT_EDGE_CACHE", str(shop.cache))
    arguments = shop.build(tmp_path / "out", "--vocab-size", "700", "--json", "--prompt", "Read this")
    assert cli.run(arguments) == 0, capsys.readouterr().err
    shown = capsys.readouterr()
    result = json.loads(shown.out)["formats"]["gguf"]
    assert result["parity"]["passed"]
    assert ("no sliding window in this layout" in shown.err) == (family == "mistral")
    card = (tmp_path / "out" / "gguf" / "README.md").read_text(encoding="utf-8")
    assert ("no sliding window in this layout" in card) == (family == "mistral")
    (file,) = (tmp_path / "out" / "gguf").glob("*.gguf")
    values = read_gguf(file).values
    assert values["tokenizer.ggml.model"] == "llama"
    sizes_of_vocabulary = [result[side]["parameters"]["vocabulary"] for side in ("before", "after")]
    assert sizes_of_vocabulary[1] < sizes_of_vocabulary[0]


def test_only_a_gguf_speaks_of_the_window_that_it_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Workshop(tmp_path / "shop", family="mistral", sliding_window=100)
    without_child(monkeypatch)
    monkeypatch.setenv("COMPACT_EDGE_CACHE", str(shop.cache))
    line = shop.build(tmp_path / "onnx", "--no-check", "--no-baseline", quant="int8", target="onnx")
    assert cli.run(line) == 0, capsys.readouterr().err
    assert "window" not in capsys.readouterr().err
    assert "llama.cpp" not in (tmp_path / "onnx" / "onnx" / "README.md").read_text(encoding="utf-8")
    assert cli.run(["export", str(shop.model), "--out", str(tmp_path / "gguf"), "--no-check"]) == 0
    assert "the GGUF equals the model up to 100 positions" in capsys.readouterr().err


def test_tools_that_prefer_tokenizer_model_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shop = Workshop(tmp_path / "shop", family="gemma2", tokenizer=tokenizer_json("gemma"), bos_token_id=1)
    for name, content in tokenizer_files("gemma").items():
        (shop.model / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    out = tmp_path / "pruned"
    arguments = ["prune", str(shop.model), "--vocab-size", "700", "--method", "magnitude", "--out", str(out)]
    assert cli.run([*arguments, "--no-cache"]) == 0, capsys.readouterr().err
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(out / "tokenizer.model"))
    ours = Tokenizer.from_file(str(out / "tokenizer.json"))
    for text in TEXTS:
        assert pieces.encode(text) == ours.encode(text, add_special_tokens=False).ids, text


@pytest.mark.parametrize("style", ["llama 2", "gemma"])
def test_bits_per_byte_of_checkpoint_and_file_agree_without_bos(tmp_path: Path, style: str) -> None:
    """Both must take the same bytes for the first token, which is not predicted."""
    model = write_checkpoint(tmp_path / "m", "llama", tokenizer=tokenizer_json(style, bos=False))
    for name, content in tokenizer_files(style).items():
        (model / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    write_gguf(model, tmp_path / "m.gguf", "F32")
    whole = evaluate_checkpoint(model, TEXTS[0], device="cpu")
    file = evaluate_gguf(tmp_path / "m.gguf", TEXTS[0], threads=1, progress=SILENT)
    assert (whole.n_bytes, whole.n_tokens) == (file.n_bytes, file.n_tokens)
    assert whole.bits_per_byte == pytest.approx(file.bits_per_byte, abs=1e-4)
