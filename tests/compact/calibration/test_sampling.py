"""Text that the model writes itself: reproducible, from a document's beginning and from the chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from compact.base.cache import Cache
from compact.base.errors import CalibrationError
from compact.calibration.calibration_set import make_calibration
from compact.calibration.sampling import sample_texts
from compact.pruning.calibration_choice import calibration_for
from compact.pruning.context import Context
from compact.pruning.options import PruneOptions
from compact.sources.model_source import TINY, open_source
from tests.checkpoints import model_config, random_weights, train_tokenizer, write_checkpoint

SMALL: dict[str, Any] = {"sequence_length": 64, "batch_size": 8, "device": "cpu", "dtype": "float32"}
CHAT = "<|im_start|>user\n"
BEYOND = 40  # rows of the embedding that no token has


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("sampling") / "m", padding=BEYOND)


def count(model: Path, texts: list[str]) -> int:
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    return sum(len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts)


def test_a_seed_gives_the_same_texts_again_and_another_gives_others(model: Path) -> None:
    first, again = (sample_texts(model, 500, **SMALL, seed=3) for _ in range(2))
    other = sample_texts(model, 500, **SMALL, seed=4)
    assert first == again
    assert not set(first) & set(other)
    assert len(set(first)) == len(first), "no text is written twice"


def test_there_are_as_many_tokens_as_asked_for_and_more_begin_with_the_same(model: Path) -> None:
    few, many = (sample_texts(model, n, **SMALL) for n in (100, 900))
    assert 100 <= count(model, few) < 100 + 3 * 64
    assert 900 <= count(model, many) < 900 + 3 * 64
    assert many[: len(few)] == few


def test_half_of_the_texts_are_chats_with_the_template_s_specials(model: Path) -> None:
    texts = sample_texts(model, 900, **SMALL)
    chats = [text for text in texts if text.startswith(CHAT)]
    assert len(texts) / 4 < len(chats) < len(texts) * 3 / 4
    # Random weights hardly ever end a turn by themselves; it ends, and the answer begins, all the same.
    assert all("<|im_end|>\n" in chat for chat in chats)
    assert not any(text.startswith("<|endoftext|>") for text in texts)


def without_template(model: Path) -> Path:
    path = model / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["chat_template"]
    path.write_text(json.dumps(settings))
    return model


def test_a_model_without_a_chat_template_writes_documents_alone(tmp_path: Path) -> None:
    texts = sample_texts(without_template(write_checkpoint(tmp_path / "m")), 300, **SMALL)
    assert texts
    assert not any(text.startswith(CHAT) for text in texts)


def test_what_the_tokenizer_puts_before_a_text_is_not_in_the_text(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m", bos=True)
    texts = sample_texts(model, 300, **SMALL)
    begins = [text for text in texts if text.startswith("<|im_start|>") and not text.startswith(CHAT)]
    assert len(begins) < len(texts) / 4  # random weights may write it themselves


def test_no_token_that_the_tokenizer_does_not_know_is_written(model: Path) -> None:
    """Such a token has no text: with 40 of about 460 rows, about 40 of 500 tokens would be lost."""
    chats = [text for text in sample_texts(model, 2000, **SMALL) if not text.startswith(CHAT)]
    lengths = [count(model, [text]) for text in chats]
    assert sum(lengths) / len(lengths) > 55, "a row of 64 positions gives a text of about 63 tokens"


def write_weights(out: Path, tokenizer: dict[str, Any], scale: float, end: int | list[int] | None) -> Path:
    """A checkpoint without tied embeddings, its logits times `scale`, which ends a text with `end`."""
    rows = max(*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer["added_tokens"])) + 1
    settings: dict[str, Any] = {"tie_word_embeddings": False, "eos_token_id": end}
    weights = random_weights(model_config("llama", rows, **settings), torch.float32, seed=5)
    weights["lm_head.weight"] *= scale
    return write_checkpoint(out, tokenizer=tokenizer, weights=weights, **settings)


def test_texts_are_those_of_transformers_where_a_model_is_sure(tmp_path: Path) -> None:
    """With logits this large a sample is the most probable token. A text that ends early makes room for another one in
    its row, which must not see it."""
    tokenizer = train_tokenizer()
    endless = write_weights(tmp_path / "endless", tokenizer, 1e6, None)
    reference = AutoModelForCausalLM.from_pretrained(endless, dtype=torch.float32)
    begin = torch.tensor([[0]])  # <|endoftext|>
    greedy = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 48}
    ids = reference.generate(begin, attention_mask=torch.ones_like(begin), **greedy)[0].tolist()
    end = next(token for at, token in enumerate(ids) if at >= 12 and token not in ids[:at])
    text = AutoTokenizer.from_pretrained(endless).decode(ids[1 : ids.index(end) + 1]).rstrip("\ufffd")
    ends = write_weights(tmp_path / "ends", tokenizer, 1e6, end)
    texts = sample_texts(ends, 400, **{**SMALL, "batch_size": 1})
    assert texts.count(text) > len(texts) / 2, "most are whole, several in a row of 64 positions"
    assert all(text.startswith(other.rstrip("\ufffd")) for other in texts), "the others are cut by a row's end"


def test_the_cache_gives_every_batch_again_and_more_are_added(model: Path, tmp_path: Path) -> None:
    def draw(tokens: int, source_id: str = "a", **changes: object) -> tuple[list[str], int, int]:
        cache = Cache(tmp_path, [], [])
        texts = sample_texts(model, tokens, **{**SMALL, **changes}, cache=cache, source_id=source_id)
        return texts, len(cache.hits), len(cache.misses)

    first, _, made = draw(1500)
    assert made >= 2
    again, hits, misses = draw(1500)
    assert (again, hits, misses) == (first, made, 0)
    more, hits, misses = draw(4000)
    assert more[: len(first)] == first
    assert hits == made and misses >= 1
    for other in (draw(900, "b"), draw(900, seed=1), draw(900, sequence_length=32)):
        assert other[1] == 0 and other[2] >= 1


def test_a_model_that_writes_nothing(tmp_path: Path) -> None:
    """Every token ends a text."""
    tokenizer = train_tokenizer()
    model = without_template(write_weights(tmp_path / "m", tokenizer, 1, list(range(500))))
    with pytest.raises(CalibrationError, match="the model wrote only 0 of"):
        sample_texts(model, 100, **SMALL)


def test_tiny_calibrates_on_its_own_text(tmp_path: Path) -> None:
    cache = Cache(tmp_path, [], [])
    source = open_source(TINY, cache)
    options = PruneOptions(calibration=("self", "stdlib"), calibration_tokens=256, sequence_length=32, device="cpu")
    made = calibration_for(Context(source, options, cache), keep_out=True)
    assert [(of.name, of.tokens) for of in made.sources] == [("self", 128), ("stdlib", 128)]
    assert [held.name for held in made.held_out] == ["self", "stdlib"]
    assert calibration_for(Context(source, options, cache), keep_out=True) == made
    assert make_calibration("stdlib", source.directory, tokens=128, sequence_length=32).n_tokens == 128
