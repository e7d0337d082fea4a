"""What the teacher says is what its model says, in every family, and a damaged file of answers is one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from compact.cache import Cache
from compact.errors import DamagedFileError
from compact.importance import load_model
from compact.recovery import teacher as teaching
from compact.recovery.teacher import Answers, Teacher
from compact.source import open_directory
from compact.tokenizer import encode, load_tokenizer
from tests.checkpoints import TEXTS, random_model
from tests.family_models import CASE_NAMES, CASES


def _answers(directory: Path, cache: Cache, *, length: int = 1024) -> list[Answers]:
    source = open_directory(directory, name="m", origin="m")
    return Teacher(directory, source.id, cache, device="cpu", dtype=torch.float32, length=length).answers(TEXTS[:3])


@pytest.mark.parametrize(("architecture", "variant"), CASES, ids=CASE_NAMES)
def test_answers_are_the_models_own(
    architecture: str, variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.family_models import VARIANTS

    directory = random_model(tmp_path / "m", architecture, **VARIANTS[architecture][variant])
    monkeypatch.setattr(teaching, "_LOGITS_BYTES", 1 << 12)  # two or three rows of logits at a time
    found = _answers(directory, Cache(tmp_path / "cache", [], []))
    model = load_model(directory)
    for answers, ids in zip(found, encode(load_tokenizer(directory), TEXTS[:3], add_special_tokens=True), strict=True):
        assert answers.ids.tolist() == ids
        with torch.inference_mode():
            expected = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        listed = expected.gather(1, torch.from_numpy(answers.top_ids))
        np.testing.assert_allclose(answers.top_log_probs, listed.numpy(), atol=5e-3)
        np.testing.assert_allclose(listed.numpy(), expected.topk(listed.shape[1]).values.numpy(), atol=1e-4)


def test_a_damaged_file_of_answers_is_one_line(tmp_path: Path) -> None:
    directory = random_model(tmp_path / "m", "LlamaForCausalLM")
    cache = Cache(tmp_path / "cache", [], [])
    _answers(directory, cache)
    [path] = cache.root.rglob("answers.npz")
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(DamagedFileError, match=r"answers\.npz"):
        _answers(directory, cache)
