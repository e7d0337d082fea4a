"""Bits per byte against a plain computation with Transformers, and windows that score every token once."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from compact.base.errors import CalibrationError, UsageError
from compact.calibration.evaluation_text import default_evaluation_text
from compact.forward.evaluate import evaluate, evaluate_checkpoint, read_text, token_bytes, windows
from compact.vocabulary.language_costs import SENTENCES, language_costs
from tests.checkpoints import TEXTS, train_tokenizer, write_checkpoint
from tests.sentencepiece_models import tokenizer_json

SHORT = TEXTS[0]
LONG = "\n".join(TEXTS)
PRE = {"llama": "gpt-2", "qwen2": "qwen2"}


@given(
    n_tokens=st.integers(0, 400),
    size=st.integers(1, 100),
    bos=st.booleans(),
    stride=st.one_of(st.none(), st.integers(1, 120)),
)
def test_windows_score_every_token_once(n_tokens: int, size: int, bos: bool, stride: int | None) -> None:
    first = 0 if bos else 1
    if not bos and size == 1:
        size = 2  # without BOS a window of one token predicts nothing
    scored: list[int] = []
    for begin, end, start in windows(n_tokens, size, first=first, stride=stride):
        assert 0 <= begin <= start < end <= n_tokens
        assert end - begin <= size
        assert bos or start > begin, "a token needs one before it"
        if begin > 0 and end - begin > 1:
            expected = size // 2 if stride is None else size - stride
            assert start - begin >= expected, "the rest of a window is context"
        scored += range(start, end)
    assert scored == list(range(first, n_tokens))


def reference(directory: Path, text: str, *, window: int, bos: int | None) -> float:
    """Bits per byte by the definition: every token's probability after its context, one forward pass a token.

    The context of token t is what the window that scores it holds: windows of `window` positions (BOS included) move
    by half of their tokens.
    """
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True).eval()
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    prefix = [] if bos is None else [bos]
    room = window - len(prefix)
    nats, n_bytes = 0.0, 0
    for position in range(0 if prefix else 1, len(ids)):
        begin = 0
        while position >= begin + room:
            begin += room // 2
        context = prefix + ids[begin:position]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([context])).logits[0, -1].double()
        nats -= float(torch.log_softmax(logits, -1)[ids[position]])
    n_bytes = len(text.encode())
    if not prefix:
        n_bytes -= len(str(tokenizer.id_to_token(ids[0])))  # one character a byte
    return nats / math.log(2) / n_bytes


@pytest.fixture(scope="module", params=["llama-bos", "qwen2-no-bos"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int | None]:
    family, _, bos = request.param.partition("-")
    out = tmp_path_factory.mktemp("eval") / "m"
    write_checkpoint(out, family, pre=PRE[family], bos=bos == "bos", dtype=torch.float32)
    return out, 1 if bos == "bos" else None


@pytest.mark.parametrize("window", [256, 17])
def test_bits_per_byte_are_those_of_transformers(model: tuple[Path, int | None], window: int) -> None:
    directory, bos = model
    for text in (SHORT[:20], LONG[30:80]):  # within one window, and over several of 17 positions
        result = evaluate_checkpoint(directory, text, window=window, device="cpu")
        assert result.bits_per_byte == pytest.approx(reference(directory, text, window=window, bos=bos), rel=1e-5)
        assert result.n_characters == len(text)
        assert result.window == window


def test_bytes_and_tokens_are_those_of_the_scored_tokens(model: tuple[Path, int | None]) -> None:
    directory, bos = model
    text = "Größe 🚀"
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    scored = ids if bos is not None else ids[1:]
    result = evaluate_checkpoint(directory, text, device="cpu")
    assert result.n_tokens == len(scored)
    assert result.n_bytes == len(tokenizer.decode(scored).encode())


def test_a_window_is_never_longer_than_the_model(model: tuple[Path, int | None]) -> None:
    assert evaluate_checkpoint(model[0], SHORT, window=10_000, device="cpu").window == 256
    assert evaluate_checkpoint(model[0], SHORT, device="cpu").window == 256


def test_the_vocabulary_does_not_change_what_a_byte_is(tmp_path: Path) -> None:
    """Uniform models of two vocabularies: each token costs log2(V) bits, whatever bytes it covers."""
    for vocab_size in (300, 420):
        tokenizer = train_tokenizer(vocab_size=vocab_size, bos=True)
        directory = write_checkpoint(tmp_path / str(vocab_size), tokenizer=tokenizer, dtype=torch.float32)
        config = json.loads((directory / "config.json").read_text())
        model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True, dtype=torch.float32)
        torch.nn.init.zeros_(model.model.norm.weight)  # logits are then zero for every token
        model.save_pretrained(directory)
        result = evaluate_checkpoint(directory, LONG, device="cpu")
        assert result.bits_per_byte == pytest.approx(
            result.n_tokens * math.log2(config["vocab_size"]) / len(LONG.encode()), rel=1e-6
        )


@pytest.mark.parametrize("text", ["", "a"])
def test_a_text_of_fewer_than_two_tokens(model: tuple[Path, int | None], text: str) -> None:
    with pytest.raises(CalibrationError, match="fewer than two tokens"):
        evaluate_checkpoint(model[0], text, device="cpu")


@pytest.mark.parametrize("window", [1, 0, -5])
def test_a_window_in_which_nothing_can_be_predicted(window: int) -> None:
    with pytest.raises(UsageError, match="--window"):
        evaluate([1, 2, 3], "abc", lambda ids: pytest.fail("not scored"), bos=None, first_token_bytes=1, window=window)


def test_records_are_joined_by_a_blank_line(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "one"}\n\n{"context": "two", "id": 3}\n{"text": "thrée"}\n', encoding="utf-8")
    assert read_text(file) == "one\n\ntwo\n\nthrée"


def test_splits_are_the_first_and_the_last_part(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("0123456789" * 10, encoding="utf-8")
    assert read_text(file, split="train") == "0123456789" * 8
    assert read_text(file, split="held-out") == "0123456789" * 2
    assert read_text(file, split="all") == read_text(file, split="train") + read_text(file, split="held-out")


def test_the_built_in_text_has_prose_and_code() -> None:
    text = default_evaluation_text()
    assert text == default_evaluation_text()
    assert 12_000 < len(text) < 20_000
    assert SENTENCES["English"] in text
    assert "def " in text


def test_costs_of_languages_count_tokens_a_character(tmp_path: Path) -> None:
    large = write_checkpoint(tmp_path / "large", tokenizer=train_tokenizer(vocab_size=420))
    small = write_checkpoint(tmp_path / "small", tokenizer=train_tokenizer(vocab_size=265))
    costs = {cost.language: cost for cost in language_costs(large, small)}
    assert list(costs) == list(SENTENCES)
    ids = Tokenizer.from_file(str(large / "tokenizer.json")).encode(SENTENCES["German"]).ids
    assert costs["German"].before == len(ids) / len(SENTENCES["German"])
    assert costs["English"].ratio > 1.2
    assert costs["Chinese"].after <= 3.0  # never more tokens than bytes


@pytest.mark.parametrize("style", ["llama 2", "gemma"])
@pytest.mark.parametrize("text", ["The quick", "  two spaces", "Größe", "今天", "🦙 llama", "\n"])
def test_bytes_of_the_first_token_of_a_sentencepiece_vocabulary(tmp_path: Path, style: str, text: str) -> None:
    document = tokenizer_json(style, bos=False)
    (tmp_path / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    tokenizer = Tokenizer.from_str(json.dumps(document))
    ids = tokenizer.encode(text).ids
    first = token_bytes(tmp_path / "tokenizer.json", ids[0])
    assert first + sum(_bytes_in_text(document, i) for i in ids[1:]) == len(text.encode())


def _bytes_in_text(document: dict[str, Any], token_id: int) -> int:
    """Of a token behind the first, where no space was put in front."""
    token = next(token for token, i in document["model"]["vocab"].items() if i == token_id)
    return 1 if token.startswith("<0x") else len(token.replace("\u2581", " ").encode())
