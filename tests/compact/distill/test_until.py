"""Held-out text during a recovery, and `--recover-until`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compact.base.cache import Cache
from compact.base.errors import UsageError
from compact.base.progress import SILENT, Task
from compact.decide import Decision, decide, pruned_checkpoint
from compact.distill.held_out_excess import HeldOutTexts, Loss, mean_excess
from compact.distill.teacher import Teacher
from compact.forward.evaluate import evaluate_checkpoint
from compact.forward.load import load_model
from compact.pruning.context import Context
from compact.pruning.options import PruneOptions
from compact.pruning.recover_options import RecoverOptions
from compact.sources.model_source import ModelSource
from compact.texts.stdlib_text import documents, take
from compact_edge.tasks.against import compare

pytestmark = pytest.mark.slow
WINDOW = 512
TEXT = "\n\n".join(take(documents("stdlib", "held_out"), 3000))[:3000]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "train.txt"
    path.write_text("\n\n".join(take(documents("stdlib"), 60_000))[:60_000], encoding="utf-8")
    return path


def options(text: Path, **recover: object) -> PruneOptions:
    chosen = {"tokens": 4000, "learning_rate": 3e-3, **recover}
    return PruneOptions(
        vocab_size=6000,
        intermediate_size=512,
        calibration=(str(text),),
        calibration_tokens=2048,
        recover=RecoverOptions(**chosen),  # type: ignore[arg-type]
        dtype="float32",
    )


class Notes:
    def __init__(self) -> None:
        self.notes: list[str] = []

    @contextmanager
    def task(self, description: str, total: int | None, unit: str) -> Iterator[Task]:
        with SILENT.task(description, total, unit) as task:
            yield task

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def cut(source: ModelSource, text: Path, cache: Cache) -> Path:
    decision = decide(Context(source, replace(options(text), recover=None), cache))
    return pruned_checkpoint(source, decision, cache)[0]


def test_losses_are_those_of_eval(source: ModelSource, cut: Path, cache: Cache) -> None:
    """Bits per byte of both models as `eval` finds them, and split words as `eval --against` does."""
    teacher = Teacher(source, cache, device="cpu", dtype=torch.float32, length=1024)
    texts = HeldOutTexts({"one": TEXT}, cut, teacher, cache, window=WINDOW)
    [loss] = texts.evaluate(load_model(cut, device="cpu", dtype=torch.float32)).values()
    pruned, unpruned = (
        evaluate_checkpoint(directory, TEXT, device="cpu", dtype="float32", window=WINDOW).bits_per_byte
        for directory in (cut, source.directory)
    )
    assert loss.bits_per_byte == pytest.approx(pruned, abs=1e-6)
    assert loss.unpruned == pytest.approx(unpruned, abs=1e-6)
    found = compare(
        str(cut),
        str(source.directory),
        TEXT,
        n_words=1,
        window=WINDOW,
        device="cpu",
        threads=1,
        cache=cache,
        progress=SILENT,
    )
    split = next(part for part in found.totals if part.name == "split")
    assert loss.split_words is not None
    assert loss.split_words > 0.01
    assert loss.split_words == pytest.approx(split.excess / sum(part.against_bits for part in found.totals), abs=1e-4)


def test_the_teacher_scores_held_out_text_once(source: ModelSource, cut: Path, cache: Cache) -> None:
    teacher = Teacher(source, cache, device="cpu", dtype=torch.float32, length=1024)
    first = HeldOutTexts({"one": TEXT}, cut, teacher, cache, window=WINDOW)

    def refuse(ids: object) -> None:
        raise AssertionError("scored again")

    teacher.score = refuse  # type: ignore[method-assign, assignment]
    model = load_model(cut, device="cpu", dtype=torch.float32)
    again = HeldOutTexts({"one": TEXT}, cut, teacher, cache, window=WINDOW)
    assert again.evaluate(model) == first.evaluate(model)


def test_a_mean_of_texts_weighs_them_by_their_bits() -> None:
    losses = {"easy": Loss(1.1, 1.0, None), "hard": Loss(3.0, 3.0, None)}
    assert mean_excess(losses) == pytest.approx(0.025)
    assert str(losses["easy"]) == "1.1000 (+10.0%)"
    assert str(Loss(1.1, 1.0, 0.04)) == "1.1000 (+10.0%: split words +4.0%, other +6.0%)"


def test_it_stops_when_the_loss_is_small_enough(source: ModelSource, text: Path, cache: Cache) -> None:
    whole = decide(Context(source, options(text), cache)).plan.recovery
    assert whole is not None
    excesses = [entry["mean_excess"] for entry in whole["history"]]
    enough = (excesses[0] + excesses[-1]) / 2
    notes = Notes()
    stopped = decide(Context(source, options(text, until=enough), cache, notes)).plan.recovery
    assert stopped is not None
    assert 0 < stopped["tokens"] < whole["tokens"]
    assert stopped["history"][-1]["mean_excess"] <= enough
    assert all(entry["mean_excess"] > enough for entry in stopped["history"][:-1])
    assert any("recovery: ended, because" in note for note in notes.notes)
    assert any("split words" in note and "%" in note for note in notes.notes)


def test_nothing_is_trained_when_the_loss_is_small_already(source: ModelSource, text: Path, cache: Cache) -> None:
    plain = decide(Context(source, replace(options(text), recover=None), cache))
    notes = Notes()
    decision: Decision = decide(Context(source, options(text, until=0.99), cache, notes))
    assert decision == plain
    assert not any("discarded" in note for note in notes.notes)
    assert any("recovery: ended, because" in note for note in notes.notes)


def test_a_budget_that_ends_first_is_a_warning(source: ModelSource, text: Path, cache: Cache) -> None:
    notes = Notes()
    decide(Context(source, options(text, tokens=1000, until=0.0001), cache, notes))
    assert any(note.startswith("warning: recovery: the budget ended before") for note in notes.notes)


@pytest.mark.parametrize("until", [0.0, -0.1, 1.0])
def test_a_share_that_cannot_be(until: float) -> None:
    with pytest.raises(UsageError, match="--recover-until"):
        RecoverOptions(until=until)


def test_a_rate_that_is_too_high_is_lowered(source: ModelSource, text: Path, cache: Cache) -> None:
    notes = Notes()
    recovery = decide(Context(source, options(text, tokens=16_000, learning_rate=0.05), cache, notes)).plan.recovery
    assert any("back to the best weights" in note for note in notes.notes)
    assert recovery is not None
    excesses = [entry["mean_excess"] for entry in recovery["history"]]
    assert max(excesses) > excesses[0]  # the first rate ruins the model
    assert min(excesses) < excesses[0] - 0.01
