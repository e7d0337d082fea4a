"""Branches: their targets, what they see, and their gradients, each against the slow and obvious way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from compact.base.cache import Cache
from compact.distill.align import Alignment, align
from compact.distill.branches import Draw, Lesson, layout
from compact.distill.example import Example, ExampleMaker, Lessons
from compact.distill.teacher import Answers
from compact.distill.train import example_loss
from compact.distill.word_tree import WordTree, word_tree
from compact.forward.load import load_model
from compact.sources.model_source import open_source
from compact.vocabulary.loading import tokenizer_document
from compact.vocabulary.vocabulary import always_kept, kept_ids, rank_by_merges, read_vocabulary
from tests.checkpoints import random_model

KEPT = 4096


@pytest.fixture(scope="module")
def alignment(tmp_path_factory: pytest.TempPathFactory) -> Alignment:
    """The whole vocabulary of `tiny`, of which a quarter is kept."""
    source = open_source("tiny", Cache(tmp_path_factory.mktemp("cache"), [], []))
    vocabulary = read_vocabulary(tokenizer_document(source.directory), source.vocab_size, "tiny")
    always = always_kept(vocabulary, [], set())
    return align(vocabulary, kept_ids(vocabulary, always, rank_by_merges(vocabulary, always), KEPT))


@pytest.fixture(scope="module")
def tree(alignment: Alignment) -> WordTree:
    return word_tree(alignment)


def distributions(alignment: Alignment, count: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return (3 * torch.randn(count, len(alignment.first_piece), generator=draw)).softmax(-1)


def by_hand(alignment: Alignment, p: torch.Tensor, pieces: tuple[int, ...]) -> tuple[dict[int, float], float]:
    """Next piece -> probability, and the probability of all words that go on, by a loop over the whole vocabulary."""
    total, longer = 0.0, 0.0
    found: dict[int, float] = {}
    for row in range(len(p)):
        own = alignment.pieces(row)
        if own[: len(pieces)] != pieces or not own:
            continue
        total += float(p[row])
        if len(own) > len(pieces):
            longer += float(p[row])
            found[own[len(pieces)]] = found.get(own[len(pieces)], 0.0) + float(p[row])
    return {piece: value / total for piece, value in found.items()}, longer


def test_the_tree_has_every_beginning_of_a_dropped_word(alignment: Alignment, tree: WordTree) -> None:
    words = [alignment.pieces(row) for row in range(len(alignment.first_piece))]
    expected = {word[:n] for word in words for n in range(1, len(word))}
    assert set(tree.pieces) == expected
    assert len(expected) > 1000


def test_the_target_after_some_pieces_is_the_sum_over_the_whole_vocabulary(
    alignment: Alignment, tree: WordTree
) -> None:
    p = distributions(alignment, 2)
    draw = Draw(tree, 12, 0.5, len(alignment.first_piece), torch.Generator().manual_seed(0))
    draw.offer(np.array([3, 8]), tree.cumulative(p))
    drawn = draw.drawn()
    assert len({(lesson.at, lesson.pieces) for lesson in drawn}) == len(drawn) >= 6
    assert any(len(lesson.pieces) > 1 for lesson in drawn)
    for lesson in drawn:
        assert len(lesson.pieces) == 1 or any(
            other.at == lesson.at and other.pieces == lesson.pieces[:-1] for other in drawn
        )  # all beginnings of a word are taught
        expected, _ = by_hand(alignment, p[0 if lesson.at == 3 else 1], lesson.pieces)
        found = dict(zip(lesson.next_pieces.tolist(), lesson.probabilities.tolist(), strict=True))
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-7)
        assert lesson.weight > 0


def test_when_every_word_is_drawn_a_lesson_weighs_the_words_that_go_on(alignment: Alignment, tree: WordTree) -> None:
    p = distributions(alignment, 1)
    draw = Draw(tree, len(tree.words) + 1, 0.5, 8, torch.Generator().manual_seed(0))
    draw.offer(np.array([5]), tree.cumulative(p))
    drawn = {lesson.pieces: lesson.weight for lesson in draw.drawn()}
    likely = float(p[0].sum()) * 1e-6  # rarer words are not drawn
    for pieces in list(drawn)[::50]:
        _, longer = by_hand(alignment, p[0], pieces)
        assert drawn[pieces] == pytest.approx(longer, rel=1e-3, abs=len(tree.words) * likely)


def test_the_weights_of_a_draw_add_up_to_the_mass_on_average(alignment: Alignment, tree: WordTree) -> None:
    p = distributions(alignment, 2)
    sums = tree.cumulative(p)
    mass = (sums[:, tree.end] - sums[:, tree.ended]).sum()
    for temper in (1.0, 0.5):
        totals = []
        for seed in range(60):
            draw = Draw(tree, 40, temper, 8, torch.Generator().manual_seed(seed))
            draw.offer(np.array([0, 1]), sums)
            totals.append(sum(lesson.weight for lesson in draw.drawn()))
        assert np.mean(totals) == pytest.approx(float(mass), rel=0.1)


# A text of 12 tokens with branches: two words after one position, with a common beginning, and one after another.
def lessons() -> Iterator[Lesson]:
    for at, pieces in ((4, (7, 9)), (4, (7,)), (4, (7, 11)), (8, (5,)), (8, (6, 5, 4))):
        yield Lesson(at, pieces, np.array([1, 2]), np.array([0.5, 0.25]), 0.5 + len(pieces))


def with_branches(vocab_size: int) -> Example:
    from compact.distill.loss import Targets

    placed = layout(12, list(lessons()))
    text = torch.randint(0, vocab_size, (12,), generator=torch.Generator().manual_seed(2)).tolist()
    taught = torch.tensor(placed.taught)
    n = len(taught)
    targets = Targets(
        torch.tensor([[1, 2]]).expand(n, 2),
        torch.tensor([[0.5, 0.25]]).expand(n, 2),
        torch.ones(n, 2, dtype=torch.bool),
        torch.tensor([lesson.weight for lesson in lessons()], dtype=torch.float32),
    )
    return Example(text + placed.ids, taught, targets, placed.parents, placed.position_ids)


@pytest.mark.parametrize(
    "architecture",
    ["LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM"],
)
def test_one_step_has_the_gradient_of_each_branch_as_a_text_of_its_own(architecture: str, tmp_path: Any) -> None:
    model = load_model(random_model(tmp_path / "m", architecture))
    example = with_branches(model.config.vocab_size)
    loss, _ = example_loss(model, [example, example], device="cpu", dtype=torch.float32)
    loss.backward()  # type: ignore[no-untyped-call]
    made = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)

    expected = torch.zeros(())
    for lesson in lessons():
        ids = example.ids[: lesson.at + 1] + list(lesson.pieces)
        log_p = model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        q, tail = torch.tensor([0.5, 0.25]), torch.tensor(0.25)
        rest = (1 - log_p[[1, 2]].exp().sum()).log()
        divergence = (q * (q.log() - log_p[[1, 2]])).sum() + tail * (tail.log() - rest)
        expected = expected + 2 * lesson.weight * divergence
    expected.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert (made[name] - parameter.grad).norm() <= 2e-5 * parameter.grad.norm(), name


def test_a_branch_sees_no_other_branch(tmp_path: Any) -> None:
    model = load_model(random_model(tmp_path / "m", "LlamaForCausalLM"))
    example = with_branches(model.config.vocab_size)

    def losses(changed: Example) -> torch.Tensor:
        rows = []
        for n in range(len(changed.positions)):
            one = Example(
                changed.ids,
                changed.positions[n : n + 1],
                type(changed.targets)(
                    *(getattr(changed.targets, name)[n : n + 1] for name in ("ids", "q", "valid", "weights"))
                ),
                changed.parents,
                changed.position_ids,
            )
            rows.append(example_loss(model, [one], device="cpu", dtype=torch.float32)[0].detach())
        return torch.stack(rows)

    before = losses(example)
    # Another token in the last branch (6, 5, 4) changes what is after it, and nothing else.
    ids = list(example.ids)
    ids[int(example.positions[-1])] = 13
    after = losses(Example(ids, example.positions, example.targets, example.parents, example.position_ids))
    torch.testing.assert_close(after[:-1], before[:-1], rtol=1e-6, atol=1e-7)
    assert abs(float(after[-1] - before[-1])) > 1e-5


def test_an_example_teaches_the_words_of_the_text_by_the_teachers_distribution(alignment: Alignment) -> None:
    row = next(row for row in range(len(alignment.first_piece)) if len(alignment.pieces(row)) == 3)
    kept = int(np.nonzero(alignment.first_piece == 300)[0][0])
    teacher_ids = [kept, row, kept]
    student_ids = [300, *alignment.pieces(row), 300]
    states = np.random.default_rng(0).normal(size=(3, len(alignment.first_piece))).astype(np.float32)
    how = Lessons(branches=0, inner_weight=0.7)
    maker = ExampleMaker(lambda values: values.softmax(-1), alignment, how, KEPT)
    example = maker.make(Answers(np.array(teacher_ids), states), student_ids, 0)
    p = torch.from_numpy(states)[0].softmax(-1)
    where = {int(position): n for n, position in enumerate(example.positions)}
    for depth in (1, 2):
        expected, _ = by_hand(alignment, p, alignment.pieces(row)[:depth])
        n = where[depth]
        valid = example.targets.valid[n]
        found = dict(zip(example.targets.ids[n][valid].tolist(), example.targets.q[n][valid].tolist(), strict=True))
        assert len(found) == min(len(expected), 64)
        assert all(found[piece] == pytest.approx(expected[piece], rel=1e-4) for piece in found)
        assert example.targets.weights[n] == pytest.approx(0.7)
