"""A whole recovery: it helps, it never harms, it goes on where it was cut, and applying it gives equal bytes."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from compact.base.cache import Cache
from compact.base.errors import CalibrationError, DiskFullError, StorageError, ToolUnavailableError, UsageError
from compact.base.progress import Task
from compact.decide import Decision, decide, pruned_checkpoint
from compact.distill import memory, run, train
from compact.distill.sources import PIECE_CHARACTERS
from compact.distill.text import TrainingText, file_documents
from compact.forward.evaluate import evaluate_checkpoint
from compact.pruning.apply import prune
from compact.pruning.budget import Sizes
from compact.pruning.context import Context
from compact.pruning.options import PruneOptions
from compact.pruning.plan import UPDATES, read_plan
from compact.pruning.recover_options import RecoverOptions
from compact.sources.model_source import ModelSource, open_directory, open_source
from compact.texts.stdlib_text import documents, take
from tests.checkpoints import random_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "train.txt"
    path.write_text("\n\n".join(take(documents("stdlib"), 120_000))[:120_000], encoding="utf-8")
    return path


def _options(calibration: Path, **changes: object) -> PruneOptions:
    chosen = {"tokens": 6000, "learning_rate": 3e-3, "pieces_per_step": 2, **changes}
    return PruneOptions(
        vocab_size=6000,
        intermediate_size=256,
        calibration=(str(calibration),),
        calibration_tokens=2048,
        recover=RecoverOptions(**chosen),  # type: ignore[arg-type]
        dtype="float32",
    )


@pytest.fixture(scope="module")
def plain(source: ModelSource, text: Path, cache: Cache) -> Decision:
    return decide(Context(source, replace(_options(text), recover=None), cache))


@pytest.fixture(scope="module")
def recovered(source: ModelSource, text: Path, cache: Cache) -> Decision:
    return decide(Context(source, _options(text), cache))


@pytest.fixture
def seeded(recovered: Decision, cache: Cache, tmp_path: Path) -> Path:
    """The folder of a cache that has the scores, the plain cut and the teacher's answers, and nothing learned."""
    for kind in ("scores", "pruned", "teacher"):
        shutil.copytree(cache.root / kind, tmp_path / "own" / kind)
    return tmp_path / "own"


def test_it_makes_the_model_better_on_text_that_it_did_not_learn_from(
    source: ModelSource, text: Path, plain: Decision, recovered: Decision, cache: Cache
) -> None:
    other = "\n\n".join(take(documents("stdlib", "held_out"), 4000))[:4000]
    before, after = (
        evaluate_checkpoint(pruned_checkpoint(source, decision, cache)[0], other, device="cpu").bits_per_byte
        for decision in (plain, recovered)
    )
    assert after < before - 0.02
    recovery = recovered.plan.recovery
    assert recovery is not None
    assert recovery["after"]["train.txt"] < recovery["before"]["train.txt"]
    assert recovery["sources"] == [{"name": "train.txt", "sha256": hashlib.sha256(text.read_bytes()).hexdigest()}]
    assert recovered.plan.kept_token_ids == plain.plan.kept_token_ids


def test_applying_what_was_learned_gives_equal_bytes(source: ModelSource, recovered: Decision, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        prune(source, recovered.plan, tmp_path / name, updates=recovered.updates)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert UPDATES in files
    assert all((tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in files)
    assert read_plan(tmp_path / "a" / "plan.json") == recovered.plan


def test_the_same_question_trains_nothing_again(
    source: ModelSource, text: Path, recovered: Decision, cache: Cache
) -> None:
    cache.misses.clear()
    assert decide(Context(source, _options(text), cache)) == recovered
    assert cache.misses == []


class _CutError(Exception):
    pass


class _Cutter:
    """Ends the run after so many reports of progress."""

    def __init__(self, after: int) -> None:
        self.left, self.notes = after, []

    @contextmanager
    def task(self, description: str, total: int | None, unit: str) -> Iterator[Task]:
        del total, unit
        cutter = self

        class _Task:
            def advance(self, amount: int = 1) -> None:
                del amount
                if description == "recovering":
                    cutter.left -= 1
                    if cutter.left == 0:
                        raise _CutError

        yield _Task()

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_run_that_is_cut_goes_on_and_learns_the_same(
    source: ModelSource,
    text: Path,
    recovered: Decision,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "_SAVE_EVERY", 0.0)
    own = Cache(tmp_path / "own", [], [])
    again = open_source("tiny", own)
    with pytest.raises(_CutError):
        decide(Context(again, _options(text), own, _Cutter(5)))
    assert own.find("recovered", "") is None
    asked = {entry.name for entry in (own.root / "teacher").iterdir()}
    own.misses.clear()
    watcher = _Cutter(10_000)
    decision = decide(Context(again, _options(text), own, watcher))
    assert any("resumed at step" in note for note in watcher.notes)
    now = {entry.name for entry in (own.root / "teacher").iterdir()}
    assert asked <= now
    assert own.misses.count("teacher") == len(now - asked)  # nothing was asked twice
    assert recovered.updates is not None
    assert decision.updates is not None
    one, other = load_file(recovered.updates), load_file(decision.updates)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name].float(), tensor.float(), rtol=0.02, atol=2e-4)
    assert not (own.root / "recovering").exists() or not any((own.root / "recovering").iterdir())


def test_a_rate_that_ruins_the_model_leaves_it_as_it_was(
    source: ModelSource, text: Path, plain: Decision, cache: Cache
) -> None:
    watcher = _Cutter(10_000)
    decision = decide(Context(source, _options(text, learning_rate=0.9, tokens=500), cache, watcher))
    assert decision == plain
    assert any("its result is discarded" in note for note in watcher.notes)


def test_a_step_that_overflows_is_left_out(
    source: ModelSource, text: Path, seeded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, real, calls = Cache(seeded, [], []), train.example_loss, []

    def overflows(*args: Any, **named: Any) -> tuple[torch.Tensor, float]:
        loss, weight = real(*args, **named)
        calls.append(weight)
        return (loss * float("nan") if len(calls) == 2 else loss), weight

    monkeypatch.setattr(train, "example_loss", overflows)
    decision = decide(Context(source, _options(text, tokens=4000), own))
    assert len(calls) > 3
    assert decision.updates is not None
    assert all(bool(tensor.isfinite().all()) for tensor in load_file(decision.updates).values())


def test_what_is_judged_is_what_is_written(
    source: ModelSource, text: Path, recovered: Decision, cache: Cache, tmp_path: Path
) -> None:
    """The checkpoint holds bfloat16; its figures are those of the run, not of the weights that were rounded to it."""
    recovery = recovered.plan.recovery
    assert recovery is not None
    [held] = TrainingText({text.name: file_documents(text)}, PIECE_CHARACTERS, 0).held_out
    directory, _ = pruned_checkpoint(source, recovered, cache)
    found = evaluate_checkpoint(directory, held.text, device="cpu", dtype="float32", window=512)
    assert recovery["after"][text.name] == pytest.approx(found.bits_per_byte, abs=1e-6)


def test_texts_of_one_name_are_judged_each(source: ModelSource, text: Path, cache: Cache, tmp_path: Path) -> None:
    other = tmp_path / text.name
    other.write_text("\n\n".join(take(documents("stdlib-prose"), 60_000))[:60_000], encoding="utf-8")
    decision = decide(Context(source, _options(text, tokens=1, text=(str(text), str(other))), cache))
    assert decision.plan.recovery is not None
    assert set(decision.plan.recovery["after"]) == {text.name, f"{text.name} (2)"}


def test_dropout_has_no_part_in_it(text: Path, tmp_path: Path) -> None:
    """Of Granite, whose published configurations name it: two runs would differ."""
    directory = random_model(tmp_path / "m", "GraniteForCausalLM", attention_dropout=0.5)
    granite = open_directory(directory, name="m", origin="m")
    options = replace(_options(text, tokens=1000), vocab_size=380, intermediate_size=64)
    losses = []
    for name in ("a", "b"):
        notes = _Cutter(10_000)
        decide(Context(granite, options, Cache(tmp_path / name, [], []), notes))
        losses.append([note for note in notes.notes if "loss" in note])
    assert losses[0] == losses[1] != []


def test_processes_that_do_not_share_a_disk_stop(
    source: ModelSource, text: Path, seeded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "broadcast_json", lambda step: step + 1)
    with pytest.raises(StorageError, match="found different states"):
        decide(Context(source, _options(text), Cache(seeded, [], [])))


def test_runs_that_nobody_went_on_with_are_forgotten(source: ModelSource, text: Path, seeded: Path) -> None:
    own = Cache(seeded, [], [])
    old, fresh = (own.path("recovering", name) for name in ("old", "fresh"))
    for path in (old, fresh):
        path.mkdir(parents=True)
    os.utime(old, (0, 0))
    decide(Context(source, _options(text, tokens=1), own))
    assert (old.exists(), fresh.exists()) == (False, True)


def test_a_short_text_is_said_to_come_again(source: ModelSource, tmp_path: Path) -> None:
    short, own = tmp_path / "short.txt", Cache(tmp_path / "own", [], [])
    short.write_text("\n\n".join(take(documents("stdlib-prose"), 9000))[:9000], encoding="utf-8")
    notes = []
    for _ in range(2):  # the second time from the cache
        watcher = _Cutter(10_000)
        decide(Context(source, _options(short, tokens=5000), own, watcher))
        notes.append([note for note in watcher.notes if "more than once" in note])
    assert notes[0] == notes[1] != []
    assert "short.txt" in notes[0][0]


def test_a_cache_that_goes_with_the_command_keeps_no_state(
    source: ModelSource, text: Path, recovered: Decision, seeded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_SAVE_EVERY", 0.0)

    def refuse(*args: Any, **named: Any) -> None:
        raise AssertionError("a state was written")

    monkeypatch.setattr(run.checkpoint, "save", refuse)
    watcher = _Cutter(10_000)
    decision = decide(Context(source, _options(text), Cache(seeded, [], [], keeps=False), watcher))
    assert not any("to resume after" in note for note in watcher.notes)
    assert recovered.updates is not None
    assert decision.updates is not None
    one, other = load_file(recovered.updates), load_file(decision.updates)
    for name, tensor in one.items():
        torch.testing.assert_close(other[name].float(), tensor.float(), rtol=0.02, atol=2e-4)


def test_a_second_process_waits_and_finds_what_the_first_learned(source: ModelSource, text: Path, seeded: Path) -> None:
    """Two caches over one folder, as two processes have."""
    first, second = (Cache(seeded, [], []) for _ in range(2))
    asked = _options(text, tokens=2000)
    decide(Context(source, replace(asked, recover=None), first))
    watcher, found = _Cutter(10_000), []

    class _Starter(_Cutter):
        """When the first one trains, it starts the second and goes on when that one waits."""

        def note(self, said: str) -> None:
            if "every five minutes" in said:
                other = threading.Thread(target=lambda: found.append(decide(Context(source, asked, second, watcher))))
                other.start()
                found.append(other)
                while other.is_alive() and not any("another process" in note for note in watcher.notes):
                    time.sleep(0.05)

    decision = decide(Context(source, asked, first, _Starter(10_000)))
    found[0].join()
    assert found[1] == decision
    assert any("waiting" in note for note in watcher.notes)
    assert not any("every five minutes" in note for note in watcher.notes)
    assert list((seeded / "recovering").iterdir()) == []


def test_memory_counts_what_the_layers_keep(source: ModelSource, plain: Decision) -> None:
    few, many = (memory.needed_memory(source, plain.plan.sizes, torch.bfloat16, "all", size) for size in (2, 16))
    channels = source.hidden_size + plain.plan.intermediate_size
    assert many - few >= 14 * min(256, source.max_positions) * source.num_hidden_layers * channels * 32


def test_memory_is_about_what_was_measured(smollm2: ModelSource) -> None:
    """7.9 GB of smollm2-135m cut by 20%, of which 0.5 GB are Python and torch."""
    assert 7.0e9 < memory.needed_memory(smollm2, Sizes(28_416, 1248), torch.bfloat16, "all", 4) < 8.0e9


def test_embeddings_alone(source: ModelSource, text: Path, plain: Decision, cache: Cache) -> None:
    decision = decide(Context(source, _options(text, train="embeddings", tokens=3000), cache))
    assert decision.updates is not None
    assert list(load_file(decision.updates)) == ["model.embed_tokens.weight"]


def test_it_goes_on_from_a_repair(source: ModelSource, text: Path, cache: Cache) -> None:
    options = replace(_options(text, train="embeddings", tokens=3000), method="repair")
    decision = decide(Context(source, options, cache))
    assert decision.plan.repair is not None
    assert decision.updates is not None
    names = set(load_file(decision.updates))
    assert "model.embed_tokens.weight" in names
    assert any(name.endswith("mlp.down_proj.weight") for name in names) == (decision.plan.repair["share"] > 0)


def test_cuts_share_what_the_teacher_said(source: ModelSource, text: Path, recovered: Decision, cache: Cache) -> None:
    cache.misses.clear()
    decide(Context(source, replace(_options(text, tokens=2000), vocab_size=9000), cache))
    assert "teacher" not in cache.misses


def test_what_cannot_be_done_is_one_line(source: ModelSource, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(text.parent / "cache", [], [])
    with pytest.raises(CalibrationError, match="no such file"):
        decide(Context(source, _options(text, text=("nowhere.txt",)), cache))
    assert cache.misses == []  # before anything is calibrated or pruned
    monkeypatch.setattr(memory, "_BYTES_PER_TRAINED", 1 << 30)
    with pytest.raises(ToolUnavailableError, match="needs about") as all_weights:
        decide(Context(source, _options(text), cache))
    with pytest.raises(ToolUnavailableError) as embeddings:
        decide(Context(source, _options(text, train="embeddings"), cache))
    assert "embeddings" in str(all_weights.value.hint)
    assert "embeddings" not in str(embeddings.value.hint)
    monkeypatch.setattr(run, "_SAVED_BYTES", 1 << 40)
    with pytest.raises(DiskFullError, match="are needed"):
        decide(Context(source, _options(text, tokens=1000), cache))
    for wrong in (
        {"tokens": 0},
        {"minutes": -1.0},
        {"learning_rate": 0.0},
        {"train": "some"},
        {"method": "magic"},
        {"pieces_per_step": 0},
        {"branches": -1},
    ):
        with pytest.raises(UsageError):
            RecoverOptions(**wrong)  # type: ignore[arg-type]
