"""A ratio without `--split`: what is removed, the fallback without held-out text, and equal plans."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from compact.base.cache import Cache
from compact.base.progress import SILENT, Task
from compact.calibration.calibration_set import HeldOut
from compact.decide import decide
from compact.pruning.budget import count_parts
from compact.pruning.calibration_choice import calibration_for
from compact.pruning.context import Context
from compact.pruning.options import PruneOptions
from compact.sources.model_source import ModelSource, open_directory
from tests.checkpoints import TEXTS, write_checkpoint

PROSE = "The quick brown fox doesn't jump over the lazy dog; she'd rather read a book of 300 pages.\n"


class Notes:
    """Keeps the notes to the user."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def task(self, description: str, total: int | None, unit: str) -> AbstractContextManager[Task]:
        return SILENT.task(description, total, unit)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    directory = write_checkpoint(tmp_path_factory.mktemp("model") / "m", intermediate_size=384)
    return open_directory(directory, name="m", origin="m")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compact.search.predictor.TEXT_BYTES", 1000)


def context_for(source: ModelSource, folder: Path, *, ratio: float, held_out: bool = True) -> Context:
    text = folder / "text.txt"
    text.write_text("\n".join(TEXTS * 10), encoding="utf-8")
    options = PruneOptions(ratio=ratio, calibration=(str(text),), calibration_tokens=200, device="cpu")
    context = Context(source, options, Cache(folder / "cache", [], []), Notes())
    texts = (HeldOut("prose.txt", PROSE * 4),) if held_out else ()
    return context.with_value(calibration_for, replace(calibration_for(context), held_out=texts))


@pytest.mark.parametrize("ratio", [0.2, 0.35])
def test_a_ratio_is_met_and_equal_inputs_give_equal_plans(source: ModelSource, tmp_path: Path, ratio: float) -> None:
    plans = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        plans.append(decide(context_for(source, tmp_path / name, ratio=ratio)).plan)
    plan = plans[0]
    assert plan.search is not None
    assert plan.id == plans[1].id and plan.search == plans[1].search
    config, parts = source.config, count_parts(source.tensors, source.config)
    rows = config["vocab_size"] - len(plan.kept_token_ids)
    channels = config["intermediate_size"] - len(plan.kept_channels[0])
    # By hand: the head is tied, and a channel is a row of gate and up and a column of down in each layer.
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    assert (rows * hidden + 3 * channels * hidden * layers) / parts.total == pytest.approx(ratio, abs=0.005)
    assert plan.search["predicted"]["vocab_size"] == len(plan.kept_token_ids)
    assert plan.search["predicted"]["intermediate_size"] == len(plan.kept_channels[0])
    assert len(plan.search["measured"]) <= 5


def test_without_held_out_text_the_fixed_rule_is_used_and_a_note_says_so(source: ModelSource, tmp_path: Path) -> None:
    context = context_for(source, tmp_path, ratio=0.2, held_out=False)
    plan = decide(context).plan
    assert isinstance(context.progress, Notes)
    (note,) = [note for note in context.progress.notes if "--split proportional" in note]
    assert "no text is left to evaluate sizes on" in note and "\n" not in note
    fixed = context.with_options(replace(context.options, split="proportional"))
    rule = decide(fixed.with_value(calibration_for, context.once(calibration_for))).plan
    assert (plan.kept_token_ids, plan.kept_channels) == (rule.kept_token_ids, rule.kept_channels)
    assert plan.search is None
