"""Two tokenizers over one text: first kept pieces and shared boundaries, against the tokenizers library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models

from compact.distill.align import Alignment, align
from compact.distill.example import ExampleMaker, Lessons
from compact.distill.teacher import Answers
from compact.vocabulary.tokenizer import prune_tokenizer_json
from compact.vocabulary.vocabulary import always_kept, kept_ids, rank_by_merges, rank_by_use, read_vocabulary
from tests.checkpoints import TEXTS, train_tokenizer

TEXT = " ".join(TEXTS)


class Pair:
    """A tokenizer and what a plan leaves of it."""

    def __init__(self, document: dict[str, Any], *, corpus: bool, vocab_size: int) -> None:
        rows = 1 + max(entry for entry in document["model"]["vocab"].values())
        rows = max(rows, 1 + max(entry["id"] for entry in document["added_tokens"]))
        self.vocabulary = read_vocabulary(document, rows, "test")
        always = always_kept(self.vocabulary, [], set())
        counts = {i: i % 7 for i in range(rows)}
        ranked = rank_by_use(self.vocabulary, always, counts) if corpus else rank_by_merges(self.vocabulary, always)
        self.kept = kept_ids(self.vocabulary, always, ranked, vocab_size)
        self.pruned = prune_tokenizer_json(document, {old: new for new, old in enumerate(self.kept)})
        self.teacher = Tokenizer.from_str(json.dumps(document))
        self.student = Tokenizer.from_str(json.dumps(self.pruned))
        self.alignment: Alignment = align(self.vocabulary, self.kept)

    def maker(self, how: Lessons) -> ExampleMaker:
        """Examples of a teacher whose hidden states are its logits."""
        return ExampleMaker(lambda states: states.softmax(-1), self.alignment, how, len(self.kept))


@pytest.fixture(scope="module", params=[False, True], ids=["merges", "corpus"])
def pair(request: pytest.FixtureRequest) -> Pair:
    return Pair(train_tokenizer("gpt-2"), corpus=request.param, vocab_size=330)


def test_the_pieces_of_every_token_are_those_of_the_pruned_bpe(pair: Pair) -> None:
    model = pair.pruned["model"]
    # The bare model, without a pre-tokenizer, cuts a token's own spelling.
    bare = Tokenizer(models.BPE(model["vocab"], [tuple(merge) for merge in model["merges"]]))
    dropped = [t for t, i in pair.vocabulary.tokens.items() if i not in set(pair.kept)]
    assert len(dropped) > 50
    for token in dropped:
        expected = bare.encode(token, add_special_tokens=False).ids
        row = pair.vocabulary.tokens[token]
        assert list(pair.alignment.pieces(row)) == expected, token
        assert pair.alignment.first_piece[row] == expected[0], token
    assert [pair.alignment.first_piece[old] for old in pair.kept] == list(range(len(pair.kept)))


def test_boundaries_are_where_both_have_read_the_same_characters(pair: Pair) -> None:
    teacher, student = (t.encode(TEXT, add_special_tokens=False) for t in (pair.teacher, pair.student))
    at, teacher_at = pair.alignment.boundaries(teacher.ids, student.ids)
    assert len(student.ids) > len(teacher.ids) >= len(at) > len(teacher.ids) // 2
    for mine, theirs in zip(at, teacher_at, strict=True):
        assert pair.student.decode(student.ids[: mine + 1]) == pair.teacher.decode(teacher.ids[: theirs + 1])
    assert at[-1] == len(student.ids) - 1
    # Where the student has no boundary of the teacher's, it is inside one of the teacher's tokens.
    ends = {end for _, end in teacher.offsets}
    inside = set(range(len(student.ids))) - set(at.tolist())
    ascii_inside = [n for n in inside if TEXT[: student.offsets[n][1]].isascii()]
    assert all(student.offsets[n][1] not in ends for n in ascii_inside)


def test_a_target_is_the_sum_of_the_teachers_probabilities_by_first_piece(pair: Pair) -> None:
    ids = pair.teacher.encode(TEXT, add_special_tokens=False).ids
    student = pair.student.encode(TEXT, add_special_tokens=False).ids
    rows = pair.vocabulary.n_rows
    logits = torch.randn(len(ids), rows, generator=torch.Generator().manual_seed(0))
    how = Lessons(branches=0, inner_weight=0.0, label_weight=0.25)
    example = pair.maker(how).make(Answers(np.array(ids), logits.numpy()), student, 0)
    assert example.ids == student
    at, teacher_at = pair.alignment.boundaries(ids, student)
    where = {int(p): n for n, p in enumerate(example.positions)}
    first_piece = [int(piece) for piece in pair.alignment.first_piece[:rows]]
    for mine, theirs in zip(at, teacher_at, strict=True):
        sums = [0.0] * len(pair.kept)
        for piece, probability in zip(first_piece, logits[theirs].softmax(-1).tolist(), strict=True):
            if piece >= 0:
                sums[piece] += probability
        expected = torch.tensor(sums)
        n = where[int(mine)]
        valid = example.targets.valid[n]
        # The target lists the likeliest tokens. The rest is its tail.
        likeliest, _ = expected.sort(descending=True)
        torch.testing.assert_close(example.targets.q[n][valid], likeliest[: int(valid.sum())], atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(
            example.targets.q[n][valid], expected[example.targets.ids[n][valid]], atol=1e-6, rtol=1e-4
        )
        assert example.targets.weights[n] == 1
    inner = sorted(set(range(len(student) - 1)) - set(at.tolist()))
    assert inner
    for position in inner:
        n = where[position]
        assert (int(example.targets.ids[n][0]), float(example.targets.q[n].sum())) == (student[position + 1], 1.0)
        assert example.targets.weights[n] == 0.25


def test_a_text_that_the_teacher_was_cut_short_in_ends_there_for_the_student_too(pair: Pair) -> None:
    ids = pair.teacher.encode(TEXT, add_special_tokens=False).ids[:40]
    student = pair.student.encode(TEXT, add_special_tokens=False).ids
    answers = Answers(np.array(ids), np.zeros((40, pair.vocabulary.n_rows), np.float32))
    example = pair.maker(Lessons(branches=0)).make(answers, student, 0)
    assert TEXT.startswith(pair.student.decode(example.ids))
    assert len(pair.student.decode(example.ids)) <= len(pair.teacher.decode(ids))


@pytest.mark.slow
def test_real_tokenizers_of_both_kinds(data_dir: Path) -> None:
    for name, share in (("llama3", 0.5), ("gemma4", 0.4)):
        document = json.loads((data_dir / "tokenizers" / name / "tokenizer.json").read_text(encoding="utf-8"))
        size = len(document["model"]["vocab"])
        pair = Pair(document, corpus=False, vocab_size=int(share * size))
        text = (data_dir / "text" / "peps.txt").read_text(encoding="utf-8")[:6000] + TEXT
        teacher, student = (t.encode(text, add_special_tokens=False).ids for t in (pair.teacher, pair.student))
        at, teacher_at = pair.alignment.boundaries(teacher, student)
        assert len(at) > 0.95 * len(teacher)
        assert at[-1] == len(student) - 1
        for mine, theirs in list(zip(at, teacher_at, strict=True))[::50]:
            assert pair.student.decode(student[: mine + 1]) == pair.teacher.decode(teacher[: theirs + 1])
