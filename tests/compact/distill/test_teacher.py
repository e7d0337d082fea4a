"""What the teacher says is what its model says, in every family; what is kept of it never ends a run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from compact.base.cache import Cache
from compact.distill.checkpoint import delete_unused
from compact.distill.teacher import Answers, Teacher
from compact.forward.load import load_model
from compact.sources.model_source import open_directory
from compact.vocabulary.tokenizer import encode, load_tokenizer
from tests.checkpoints import TEXTS, random_model
from tests.family_models import CASE_NAMES, CASES


def _answers(directory: Path, cache: Cache, *, length: int = 1024) -> list[Answers]:
    source = open_directory(directory, name="m", origin="m")
    return Teacher(source, cache, device="cpu", dtype=torch.float32, length=length).answers(TEXTS[:3])


@pytest.mark.parametrize(("architecture", "variant"), CASES, ids=CASE_NAMES)
def test_answers_are_the_models_own(architecture: str, variant: str, tmp_path: Path) -> None:
    from tests.family_models import VARIANTS

    directory = random_model(tmp_path / "m", architecture, **VARIANTS[architecture][variant])
    teacher = _teacher(directory, Cache(tmp_path / "cache", [], []))
    found = teacher.answers(TEXTS[:3])
    model = load_model(directory)
    for answers, ids in zip(found, encode(load_tokenizer(directory), TEXTS[:3], add_special_tokens=True), strict=True):
        assert answers.ids.tolist() == ids
        with torch.inference_mode():
            expected = model(input_ids=torch.tensor([ids])).logits[0].softmax(-1)
        given = teacher.probabilities(torch.from_numpy(answers.states))
        np.testing.assert_allclose(given.numpy(), expected.numpy(), atol=5e-3)


def _teacher(directory: Path, cache: Cache) -> Teacher:
    source = open_directory(directory, name="m", origin="m")
    return Teacher(source, cache, device="cpu", dtype=torch.float32, length=1024)


def _same(first: list[Answers], second: list[Answers]) -> None:
    for one, other in zip(first, second, strict=True):
        for name in ("ids", "states"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_a_piece_is_asked_once_whatever_stands_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = random_model(tmp_path / "m", "LlamaForCausalLM")
    cache = Cache(tmp_path / "cache", [], [])
    first = _teacher(directory, cache).answers([TEXTS[0], TEXTS[1], TEXTS[0]])
    _same(first[:1], first[2:])
    again = _teacher(directory, cache)
    asked: list[Any] = []
    real = again._answer
    monkeypatch.setattr(again, "_answer", lambda sequences: asked.append(len(sequences)) or real(sequences))
    found = again.answers([TEXTS[2], TEXTS[1], TEXTS[3], TEXTS[0]])
    assert asked == [2]  # the new ones, in one batch
    _same([found[3], found[1]], first[:2])
    again.answers([TEXTS[3], TEXTS[2]])
    assert asked == [2]
    assert len(list((tmp_path / "cache" / "teacher").iterdir())) == 4


def test_a_damaged_answer_is_asked_for_again(tmp_path: Path) -> None:
    directory = random_model(tmp_path / "m", "LlamaForCausalLM")
    cache = Cache(tmp_path / "cache", [], [])
    first = _answers(directory, cache)
    for path in cache.root.rglob("answers.npz"):
        path.write_bytes(b"\0" * path.stat().st_size)
    _same(_answers(directory, cache), first)
    for path in cache.root.rglob("answers.npz"):
        assert path.read_bytes().strip(b"\0")  # and written again


def test_a_disk_with_little_room_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = random_model(tmp_path / "m", "LlamaForCausalLM")
    kept = Cache(tmp_path / "kept", [], [])
    expected = _answers(directory, kept)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3 << 30))
    short = Cache(tmp_path / "short", [], [])
    _same(_answers(directory, short), expected)  # what is not kept is as exact as what is
    assert list(short.root.rglob("*.npz")) == []
    _same(_answers(directory, kept), expected)


def test_use_keeps_an_answer_from_being_forgotten(tmp_path: Path) -> None:
    directory = random_model(tmp_path / "m", "LlamaForCausalLM")
    cache = Cache(tmp_path / "cache", [], [])
    teacher = _teacher(directory, cache)
    teacher.answers(TEXTS[:2])
    entries = list((cache.root / "teacher").iterdir())
    for entry in entries:
        os.utime(entry, (0, 0))
    teacher.answers(TEXTS[:1])
    delete_unused(cache.root / "teacher")
    assert len(list((cache.root / "teacher").iterdir())) == 1
    assert len(entries) == 2
