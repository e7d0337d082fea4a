"""Which tokens the student learns to write: those of the user's languages and of the training text."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from compact.base.cache import Cache
from compact.distill.align import align
from compact.distill.example import ExampleMaker, Lessons
from compact.distill.likely_tokens import likely_tokens
from compact.distill.teacher import Answers, Teacher
from compact.pruning.context import Context
from compact.pruning.options import PruneOptions
from compact.pruning.ranking import Ranking, rank_vocabulary
from compact.pruning.token_use import encoder
from compact.sources.model_source import ModelSource
from compact.vocabulary.tokenizer import load_tokenizer

KEPT = 4096
TEXT = "A harbour master entered the arrivals in a ledger, in careful handwriting, until the war ended.\n"


@pytest.fixture(scope="module")
def ranking(source: ModelSource, cache: Cache) -> Ranking:
    return rank_vocabulary(Context(source, PruneOptions(vocab_size=KEPT), cache))


def kept_by(ranking: Ranking, count: int) -> list[int]:
    return sorted([*ranking.always, *ranking.order[: count - len(ranking.always)]])


def test_a_ranking_by_merge_order_expects_every_token(source: ModelSource, ranking: Ranking) -> None:
    merges = replace(ranking, name="merges", scripts=(), use=None)
    found = likely_tokens(merges, [], [], encoder(source.directory))
    assert found.tolist() == list(range(source.vocab_size))


def test_kept_tokens_tokens_of_the_text_and_used_tokens_are_likely(source: ModelSource, ranking: Ranking) -> None:
    encode = encoder(source.directory)
    used = encode(["unexpected"])[0]
    by_use = replace(ranking, use={used[0]: 0.5, 4000: 0.0})
    found = set(likely_tokens(by_use, [0, 1], [TEXT], encode).tolist())
    assert found == {0, 1, used[0], *encode([TEXT])[0]}


def test_a_ranking_by_scripts_expects_no_token_of_another_script(source: ModelSource, ranking: Ranking) -> None:
    by_script = replace(ranking, scripts=("Latn",), use=None)
    found = set(likely_tokens(by_script, [], [], encoder(source.directory)).tolist())
    texts = ranking.vocabulary.texts
    words = {i: texts.get(token) for i, token in ranking.vocabulary.by_id.items()}
    assert {i for i, text in words.items() if text and text.isascii()} <= found
    assert not any(
        text and any("\u0400" <= letter <= "\u04ff" for letter in text) for i, text in words.items() if i in found
    )


def test_an_unlikely_word_has_no_probability_and_no_lesson(
    source: ModelSource, ranking: Ranking, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kept = kept_by(ranking, KEPT)
    alignment = align(ranking.vocabulary, kept)
    dropped = [row for row in range(source.vocab_size) if len(alignment.pieces(row)) > 1]
    likely = np.array(sorted({*kept, *dropped[::2]}), dtype=np.int64)
    cache = Cache(tmp_path_factory.mktemp("answers"), [], [])
    teacher = Teacher(source, cache, device="cpu", dtype=torch.float32, length=64, tokens=likely)
    everything = Teacher(source, cache, device="cpu", dtype=torch.float32, length=64)
    answers = teacher.answers([TEXT])[0]
    states = torch.from_numpy(answers.states)

    given, full = teacher.probabilities(states), everything.probabilities(states)
    chosen = full[:, torch.from_numpy(likely)]
    torch.testing.assert_close(given, chosen / chosen.sum(1, keepdim=True), rtol=1e-4, atol=1e-7)

    maker = ExampleMaker(teacher.probabilities, alignment, Lessons(branches=64), len(kept), likely)
    student_ids = student_reading(source, kept, tmp_path_factory)
    example = maker.make(Answers(answers.ids, answers.states), student_ids, seed=0)
    taught = branches_of(example.ids, example.parents.tolist(), example.n_text)
    words = {alignment.pieces(row) for row in likely.tolist()}
    beginnings = {word[:n] for word in words for n in range(1, len(word))}
    unlikely = {alignment.pieces(row)[:n] for row in dropped for n in range(1, len(alignment.pieces(row)))} - beginnings
    assert len(taught) >= 16
    assert unlikely
    assert taught <= beginnings


def branches_of(ids: list[int], parents: list[int], n_text: int) -> set[tuple[int, ...]]:
    """The pieces of every branch position, from its beginning."""
    found: dict[int, tuple[int, ...]] = {}
    for n, parent in enumerate(parents):
        found[n_text + n] = (*found.get(parent, ()), ids[n_text + n])
    return set(found.values())


def student_reading(source: ModelSource, kept: list[int], tmp: pytest.TempPathFactory) -> list[int]:
    from compact.calibration.held_out import write_tokenizer

    directory = tmp.mktemp("student")
    write_tokenizer(source, directory, kept)
    ids: list[int] = load_tokenizer(directory)(TEXT)["input_ids"]
    return ids
