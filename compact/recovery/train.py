"""The training loop of distillation: AdamW over float32 weights, a linearly falling rate, and the best model kept."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from compact.calibration import HeldOut
from compact.evaluate import evaluate, hf_score
from compact.recovery.lesson import Lesson
from compact.recovery.loss import Targets, head_loss
from compact.recovery.state import State

_WARMUP_STEPS = 10
_CLIP = 1.0
_BETAS = (0.9, 0.95)
# Held-out bits per byte are measured this often in a run; the first time is before the first step.
_EVALUATIONS = 10


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    Attributes:
        tokens, seconds: the budget, whichever is used up first; None for no limit of that kind.
        learning_rate: of the first steps; it falls linearly to nothing at the end of the budget.
    """

    learning_rate: float
    tokens: int | None = None
    seconds: float | None = None

    def done(self, tokens: int, seconds: float) -> float:
        """The share of the budget that is used up; 1 or more at the end."""
        shares = [used / limit for used, limit in ((tokens, self.tokens), (seconds, self.seconds)) if limit]
        return max(shares, default=1.0)

    def rate(self, step: int, done: float) -> float:
        """Learning rate of a step."""
        return self.learning_rate * min(1.0, (step + 1) / _WARMUP_STEPS) * max(0.0, 1.0 - done)


def trained_parameters(model: Any, train: str) -> list[torch.nn.Parameter]:
    """The parameters that `--train` names: `all`, or `embeddings` (the embedding and the LM head)."""
    if train == "all":
        chosen = list(model.parameters())
    else:
        chosen = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    unique = list({id(parameter): parameter for parameter in chosen}.values())
    for parameter in model.parameters():
        parameter.requires_grad_(any(parameter is one for one in unique))
    return unique


def compute_context(device: str, dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    """Autocast where the matrices are multiplied in a smaller type than the weights' float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device, dtype=dtype)


def head_settings(config: Any) -> tuple[float, float | None]:
    """(scale, cap) of a model's logits, for `head_loss`."""
    scaling = getattr(config, "logits_scaling", None)
    cap = getattr(config, "final_logit_softcapping", None)
    return (1.0 / float(scaling) if scaling else 1.0), (float(cap) if cap else None)


def lesson_loss(
    model: Any, lessons: Sequence[Lesson], *, device: str, dtype: torch.dtype
) -> tuple[torch.Tensor, float]:
    """(sum of the weighted losses of all rows of a batch, sum of the weights)."""
    width = max(len(lesson.ids) for lesson in lessons)
    batch = torch.zeros(len(lessons), width, dtype=torch.int64)
    for row, lesson in enumerate(lessons):
        batch[row, : len(lesson.ids)] = torch.tensor(lesson.ids)
    where = torch.cat([row * width + lesson.positions for row, lesson in enumerate(lessons)])
    parts = [lesson.targets for lesson in lessons]
    k = max(part.ids.shape[1] for part in parts)
    assert all(part.ids.shape[1] == k for part in parts), "one teacher, one number of answers"
    targets = Targets(*(torch.cat([getattr(p, name) for p in parts]) for name in ("ids", "q", "valid", "weights")))
    scale, cap = head_settings(model.config)
    with compute_context(device, dtype):
        hidden = model.model(input_ids=batch.to(device), use_cache=False).last_hidden_state
        rows = hidden.reshape(-1, hidden.shape[-1])[where.to(device)]
    rows = rows.to(dtype)
    head = model.get_output_embeddings().weight
    loss = head_loss(rows, head, targets.to(rows.device), scale=scale, cap=cap)
    return loss, float(targets.weights.sum())


@dataclass(frozen=True)
class Judge:
    """Bits per byte on text that is kept out.

    Attributes:
        texts: name, text and the student's ids of it.
        bos: put before every window, where the model has one.
        window: positions.
    """

    texts: Sequence[tuple[HeldOut, list[int]]]
    bos: int | None
    window: int
    first_token_bytes: Callable[[int], int]

    def bits_per_byte(self, model: Any, *, device: str, dtype: torch.dtype) -> dict[str, float]:
        """Name of the text -> bits per byte."""
        model.eval()
        with compute_context(device, dtype):
            score = hf_score(model)
            return {
                held.name: evaluate(
                    ids,
                    held.text,
                    score,
                    bos=self.bos,
                    first_token_bytes=self.first_token_bytes(ids[0]),
                    window=self.window,
                ).bits_per_byte
                for held, ids in self.texts
            }


@dataclass(frozen=True)
class Trainer:
    """One run over a student.

    Attributes:
        model: the student, float32, on its device.
        parameters: those that are trained.
        optimizer: over them.
        schedule: budget and rate.
        judge: held-out text.
        device, dtype: where and in what type matrices are multiplied.
        batches: lessons of a step come in batches of at most this many.
        average: makes the gradients of a step the same on all processes.
        agree: makes a value the first process's on all processes.
    """

    model: Any
    parameters: list[torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    judge: Judge
    device: str
    dtype: torch.dtype
    batch_size: int
    average: Callable[[list[torch.Tensor]], None]
    agree: Callable[[Any], Any]
    processes: int = 1

    def steps(self, groups: Iterator[list[Lesson]], state: State) -> Iterator[tuple[State, bool]]:
        """Train until the budget is used up; yields after every step: the state, and whether it was just judged.

        Args:
            groups: the lessons of one step after another.
            state: where to go on.
        """
        if not state.history:
            self._judge(state, 0.0)
            yield state, True
        began = time.monotonic() - state.seconds
        losses: list[tuple[float, float]] = []
        judged = state.history[-1]["done"]
        while (done := self.schedule.done(state.tokens, state.seconds)) < 1.0:
            group = next(groups)
            losses.append(self._step(group, self.schedule.rate(state.step, done)))
            state.step += 1
            state.pieces += self.processes * len(group)
            tokens = self.agree([sum(len(lesson.ids) for lesson in group), time.monotonic() - began])
            state.tokens += self.processes * int(tokens[0])
            state.seconds = float(tokens[1])
            done = min(1.0, self.schedule.done(state.tokens, state.seconds))
            is_due = done >= 1.0 or done - judged >= 1.0 / _EVALUATIONS
            if is_due:
                total, weight = map(sum, zip(*losses, strict=True))
                self._judge(state, total / weight)
                losses, judged = [], done
            yield state, is_due

    def _step(self, lessons: Sequence[Lesson], rate: float) -> tuple[float, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        total = weight = 0.0
        for start in range(0, len(lessons), self.batch_size):
            batch = lessons[start : start + self.batch_size]
            loss, rows = lesson_loss(self.model, batch, device=self.device, dtype=self.dtype)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
            weight += rows
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad /= max(weight, 1.0)
        self.average([parameter.grad for parameter in self.parameters if parameter.grad is not None])
        torch.nn.utils.clip_grad_norm_(self.parameters, _CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total, weight

    def _judge(self, state: State, loss: float) -> None:
        bits = self.judge.bits_per_byte(self.model, device=self.device, dtype=self.dtype)
        entry = {
            "step": state.step,
            "tokens": state.tokens,
            "seconds": round(state.seconds, 1),
            "done": self.schedule.done(state.tokens, state.seconds),
            "loss": loss,
            "bits_per_byte": bits,
        }
        state.history.append(entry)
        if _mean(entry) < _mean(state.history[state.best]):
            state.best = len(state.history) - 1


def _mean(entry: dict[str, Any]) -> float:
    values: list[float] = list(entry["bits_per_byte"].values())
    return sum(values) / len(values)


def make_optimizer(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW without weight decay: the weights are to stay near where they are."""
    return torch.optim.AdamW(parameters, lr=0.0, betas=_BETAS, weight_decay=0.0, fused=True)
