"""`--recover distill`: train the pruned model with the unpruned one as teacher, and store the result in the plan.

An interrupted run can be resumed, because its state is in the cache until the run ends.

During the run, the model is evaluated several times on held-out text, starting with the pruned model itself. The model
with the lowest mean of the texts' bits per byte is written. A run therefore never makes this mean worse. It may make
one text worse while it makes another one better. When an evaluation finds a worse model, training goes back to the best
one, with a lower learning rate.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from compact.base.cache import ENVIRONMENT
from compact.base.devices import cpu_multiplies_bfloat16, resolve_device
from compact.base.distributed import barrier, broadcast_json, is_main, rank, share, world_size
from compact.base.errors import StorageError
from compact.base.files import read_json_object, sha256_json, write_json
from compact.calibration import calibration_set as calibrating
from compact.calibration.held_out import named_texts
from compact.distill import checkpoint
from compact.distill.align import Alignment, IntArray, align
from compact.distill.checkpoint import TORCH_DTYPES
from compact.distill.example import Example, ExampleMaker, Lessons
from compact.distill.held_out_excess import HeldOutTexts, Loss
from compact.distill.likely_tokens import likely_tokens
from compact.distill.lock import exclusive_run
from compact.distill.memory import needed_and_free, require_memory, trained_and_all
from compact.distill.optimizer import make_optimizer
from compact.distill.sources import training_text
from compact.distill.state import State
from compact.distill.teacher import KIND, Teacher
from compact.distill.text import TrainingText
from compact.distill.train import Schedule, Trainer, embeddings_of, trained_parameters
from compact.forward.load import load_model, with_fast_attention
from compact.pruning.budget import Sizes
from compact.pruning.context import Context
from compact.pruning.plan import UPDATES, PrunePlan
from compact.pruning.ranking import rank_vocabulary
from compact.pruning.recover_options import PIECE_TOKENS, RecoverOptions, RelativeRates
from compact.pruning.recovery_record import changes
from compact.pruning.token_use import encoder
from compact.sources.model_source import ModelSource
from compact.vocabulary.tokenizer import encode, load_tokenizer

# Truncate pieces to this many tokens. This matters for scripts that the vocabulary splits into many short tokens.
_LONGEST = 2 * PIECE_TOKENS
# Positions per window of the held-out text.
_WINDOW = 512
# Number of pieces that the teacher answers at once.
_SHARD = 32
_SEQUENCES_PER_BATCH = 4
# Characters of every training text that tell which tokens the text uses.
_COUNTED_CHARACTERS = 2_000_000
# Save the run's state, and show its loss if there was no evaluation, after this many seconds.
_SAVE_EVERY = _NOTE_EVERY = 300.0
# Bytes on disk per trained weight: of the run's state (float32 weight, two moments, best so far), and of the result.
_SAVED_BYTES = 14
_WRITTEN_BYTES = 2
_FILE = "recovery.json"
# Increment when equal inputs give another training run.
_VERSION = 4


def distill(
    context: Context, plan: PrunePlan, student: Path, *, updates: Path | None = None
) -> tuple[PrunePlan, Path | None]:
    """Train the pruned model and store the result in the plan.

    1. Open the text and hold some of it out.
    2. Resume the run from the cache, if it was interrupted.
    3. Train until the budget is used up (`_Session.run`).
    4. Write the best model as the plan's updates.

    Args:
        context: the teacher and the options. `recover` gives text (which must not be empty), budget and learning rate.
            `device` and `dtype` apply to matrix products, while weights and sums are float32. `seed` determines the
            order of the text. The cache stores the teacher's answers while the disk has room, the run's state until it
            ends, and the result.
        plan: the plan that the pruned checkpoint was made with.
        student: directory of the pruned checkpoint, repaired or not.
        updates: the updates that the plan already names (from a repair), or None.

    Returns:
        The plan with `recovery`, and its updates. Plan and updates are unchanged if training found no better model.

    Raises:
        CalibrationError: there is too little text.
        ToolUnavailableError: there is too little memory.
        DiskFullError: there is no room for the run's state.
        EngineCrashedError: the model overflows.
        StorageError: a group of processes finds that another process is training the same model.
    """
    source, cache, progress = context.source, context.cache, context.progress
    options, seed = context.options.recover, context.options.seed
    assert options is not None
    place = resolve_device(context.options.device)
    compute = training_dtype(context.options.dtype, place)
    text = training_text(source, options, cache, seed=seed, device=place, progress=progress)
    rates = options.rates(only_vocabulary=plan.sizes.intermediate_size == source.intermediate_size)
    ranking, sample = context.once(rank_vocabulary), text.sample(_COUNTED_CHARACTERS)
    tokens = likely_tokens(ranking, plan.kept_token_ids, sample, encoder(source.directory))
    run = {
        "version": _VERSION,
        "plan": plan.id,
        "text": text.id,
        "tokens": options.tokens,
        "seconds": options.seconds,
        "until": options.until,
        "learning_rate": options.learning_rate,
        "rates": asdict(rates),
        "likely_tokens": sha256_json(tokens.tolist()),
        "train": options.train,
        "device": place,
        "dtype": str(compute),
        "seed": seed,
        "processes": world_size(),
        "lessons": asdict(Lessons(branches=options.branches)),
    }
    key = sha256_json(run)
    saved = cache.path("recovering", key)

    trained, _ = trained_and_all(source, plan.sizes, options.train)
    state_bytes = trained * (_SAVED_BYTES if cache.keeps else _WRITTEN_BYTES)

    def make(work: Path) -> None:
        require_memory(source, plan.sizes, place, compute, options.train, _batch_size(place))
        # While a new state is written, the old one is still on disk.
        left_free = 2 * state_bytes + trained * _WRITTEN_BYTES
        session = _Session(
            context, plan, student, text, tokens, rates, device=place, dtype=compute, saved=saved, left_free=left_free
        )
        state = session.run()
        if is_main():
            if state.best > 0:
                checkpoint.write_updates(saved, updates, work / UPDATES)
            result = {"run": run, "history": state.history, "best": state.best, "passes": text.passes()}
            write_json(work / _FILE, result)

    is_there = broadcast_json(cache.find("recovered", key) is not None)
    with contextlib.nullcontext() if is_there else exclusive_run(saved, progress):
        disk = state_bytes * (1 if saved.is_dir() else 2) + trained * _WRITTEN_BYTES
        found = cache.get_or_make("recovered", key, make, needed_bytes=disk, together=True)
        if is_main():
            shutil.rmtree(saved, ignore_errors=True)
    if is_main():
        checkpoint.delete_unused(saved.parent)
        checkpoint.delete_unused(cache.root / KIND)
    result = read_json_object(found / _FILE)
    first, best = result["history"][0], result["history"][result["best"]]
    unpruned = {name: loss.unpruned for name, loss in _losses(first).items()}
    is_enough = options.until is not None and best["mean_excess"] <= options.until
    if result["best"] > 0 or not is_enough:
        progress.note(_outcome(first, best, unpruned, is_better=result["best"] > 0))
    if options.until is not None:
        progress.note(_until_words(options.until, best["mean_excess"]))
    # Results of older versions have no `passes`.
    if passes := result.get("passes"):
        words = ", ".join(f"{name} {times:.1f} times" for name, times in passes.items())
        progress.note(f"recovery: some text was used more than once: {words}")
    if result["best"] == 0:
        return plan, updates
    recovery = {
        "method": options.method,
        "text": [calibrating.plain_name(name) for name in options.text],
        "sources": text.described(),
        "learning_rate": options.learning_rate,
        "train": options.train,
        "seed": seed,
        "unpruned": unpruned,
        "before": first["bits_per_byte"],
        "after": best["bits_per_byte"],
        "tokens": best["tokens"],
        "seconds": best["seconds"],
        "history": result["history"],
    }
    digest = cache.recorded_sha256("recovered", key, UPDATES)
    return replace(plan, updates_sha256=digest, recovery=recovery), found / UPDATES


def memory_of(source: ModelSource, sizes: Sizes, options: RecoverOptions, device: str, dtype: str) -> tuple[int, int]:
    """Return the estimated bytes of memory that training needs at these sizes, and the free bytes."""
    place = resolve_device(device)
    return needed_and_free(source, sizes, place, training_dtype(dtype, place), options.train, _batch_size(place))


def _losses(entry: dict[str, Any]) -> dict[str, Loss]:
    """Return the losses of an entry of the history."""
    return {
        name: Loss(bits, bits / (1 + entry["excess"][name]), entry["excess_in_split_words"][name])
        for name, bits in entry["bits_per_byte"].items()
    }


def _outcome(first: dict[str, Any], best: dict[str, Any], unpruned: dict[str, float], *, is_better: bool) -> str:
    if not is_better:
        return "recovery: training found no better model on held-out text, so its result is discarded"
    words = changes(first["bits_per_byte"], best["bits_per_byte"], unpruned)
    return f"recovery: bits per byte on held-out text {words} ({best['tokens']:,} tokens, {best['seconds']:.0f} s)"


def _slower_words(factor: float) -> str:
    return f"recovery: the held-out text got worse; back to the best weights, with {factor:.1%} of the learning rate"


def _until_words(until: float, excess: float) -> str:
    found = f"the held-out text costs {excess:+.1%} compared with the unpruned model"
    if excess <= until:
        return f"recovery: ended, because {found} (--recover-until {until:.1%})"
    return f"warning: recovery: the budget ended before --recover-until {until:.1%} was reached; {found}"


def training_dtype(dtype: str, device: str) -> torch.dtype:
    """Return the compute type for a `--dtype`.

    `auto` means bfloat16 if the device supports it in hardware, otherwise float32. float16 also gives float32, because
    training in float16 would need loss scaling.
    """
    if dtype == "bfloat16":
        return torch.bfloat16
    if dtype != "auto":
        return torch.float32
    if device == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if device == "cpu" and cpu_multiplies_bfloat16() else torch.float32


def _batch_size(device: str) -> int:
    return _SEQUENCES_PER_BATCH if device == "cpu" else 8 * _SEQUENCES_PER_BATCH


class _Session:
    """The part of a training run that one process does."""

    def __init__(
        self,
        context: Context,
        plan: PrunePlan,
        student: Path,
        text: TrainingText,
        tokens: IntArray,
        rates: RelativeRates,
        *,
        device: str,
        dtype: torch.dtype,
        saved: Path,
        left_free: int,
    ) -> None:
        """Load the student and prepare the teacher.

        Args:
            context: the teacher and the training options.
            plan: the plan that the pruned checkpoint was made with.
            student: directory of the pruned checkpoint.
            text: the training text.
            tokens: int64 [C], the tokens of the teacher that the text may have (`likely_tokens`).
            rates: the learning rates, unless the options give one, and the pieces per step.
            device, dtype: device and compute type.
            saved: directory of the run's state.
            left_free: bytes that must stay free on the disk when the teacher's answers are stored.
        """
        source, cache, options = context.source, context.cache, context.options.recover
        assert options is not None
        self._keeps, self._seed = cache.keeps, context.options.seed
        self._per_step, self._text, self._saved, self._progress = rates.pieces_per_step, text, saved, context.progress
        self._tokenizer = load_tokenizer(student)
        self._alignment: Alignment = align(context.once(rank_vocabulary).vocabulary, plan.kept_token_ids)
        self._length = min(_LONGEST, source.max_positions)
        self._teacher = Teacher(
            source,
            cache,
            device=device,
            dtype=dtype,
            length=self._length,
            left_free=left_free,
            tokens=tokens,
        )
        lessons = Lessons(branches=options.branches)
        n_rows = len(plan.kept_token_ids)
        self._maker = ExampleMaker(self._teacher.probabilities, self._alignment, lessons, n_rows, tokens)
        model = with_fast_attention(load_model(student, device=device, dtype=torch.float32))
        parameters = trained_parameters(model, options.train)
        self._trainer = Trainer(
            model=model,
            parameters=parameters,
            dtypes={name: TORCH_DTYPES[source.tensors[name].dtype] for name in parameters},
            optimizer=make_optimizer(parameters.values(), options.learning_rate or rates, embeddings_of(model)),
            schedule=Schedule(options.tokens, options.seconds, options.until),
            held_out=HeldOutTexts(
                named_texts(text.held_out),
                student,
                self._teacher,
                cache,
                window=min(_WINDOW, source.max_positions),
            ),
            device=device,
            dtype=dtype,
            batch_size=_batch_size(device),
        )

    def run(self) -> State:
        """Train until the budget is used up, and return the final state. Resume if there is a saved state."""
        state = checkpoint.load(self._saved, self._trainer)
        if broadcast_json(state.step) != state.step:  # different numbers of steps would cause a deadlock
            raise StorageError(
                f"{self._saved}: process {rank()} and process 0 found different states of the run",
                f"set {ENVIRONMENT} to a folder that all machines share",
            )
        barrier()  # the first process must not write a new state before all have read the old one
        if state.step:
            self._progress.note(f"recovery: resumed at step {state.step}, {state.tokens:,} tokens")
        elif self._keeps:
            self._progress.note(
                "recovery: saved every five minutes; to resume after an interruption, repeat the command"
            )
        saved_at = noted_at = state.seconds
        schedule = self._trainer.schedule
        # With both limits, the bar shows seconds. If the tokens are used up first, it jumps to the end.
        total, unit = (math.ceil(schedule.seconds), "s") if schedule.seconds else (schedule.tokens or 0, "tokens")
        shown, factor = 0, state.rate_factor
        with self._progress.task("recovering", total, unit) as task:
            for now, is_judged in self._trainer.steps(self._groups(state.pieces), state):
                at = min(total, int(total * schedule.done(now.tokens, now.seconds)))
                task.advance(at - shown)
                shown = at
                if is_judged or now.seconds - noted_at > _NOTE_EVERY:
                    self._note(now, is_judged=is_judged)
                    noted_at = now.seconds
                if now.rate_factor < factor:
                    self._progress.note(_slower_words(now.rate_factor))
                factor = now.rate_factor
                is_best = is_judged and now.best == len(now.history) - 1
                if is_main() and self._keeps and (is_best or now.seconds - saved_at > _SAVE_EVERY):
                    checkpoint.save(self._saved, self._trainer, now)
                    saved_at = now.seconds
        if is_main() and state.best > 0:
            checkpoint.save_best(self._saved, self._trainer)
        return state

    def _note(self, state: State, *, is_judged: bool) -> None:
        parts = [f"{state.tokens:,} tokens"]
        if state.step:
            parts.append(f"loss {state.loss:.4f}")
        if is_judged:
            parts.append(
                "held-out text " + ", ".join(f"{name} {loss}" for name, loss in _losses(state.history[-1]).items())
            )
        self._progress.note(f"recovery: {', '.join(parts)}")

    def _groups(self, skip: int) -> Iterator[list[Example]]:
        """Yield the examples of each step. Every process takes its share of them."""
        per_step = self._per_step * world_size()
        size = max(1, _SHARD // per_step) * per_step
        pieces = itertools.islice(self._text.pieces(), skip, None)
        number = skip
        while True:
            shard = list(itertools.islice(pieces, size))
            texts = share(shard)
            answers = self._teacher.answers(texts)
            ids = encode(self._tokenizer, texts, add_special_tokens=True)
            # Each piece has a seed of its own, so that a resumed run draws what the interrupted one would have drawn.
            seeds = [int(sha256_json([self._seed, number + n, rank()])[:15], 16) for n in range(len(texts))]
            number += size
            examples = [
                self._maker.make(answer, row[: self._length], seed)
                for answer, row, seed in zip(answers, ids, seeds, strict=True)
            ]
            for start in range(0, len(examples), self._per_step):
                yield examples[start : start + self._per_step]
