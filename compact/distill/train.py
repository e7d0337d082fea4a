"""The training loop of distillation: AdamW on float32 weights, with warm-up and a linearly decreasing learning rate."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from compact.base.distributed import all_reduce_mean_, broadcast_json, world_size
from compact.base.errors import EngineCrashedError
from compact.distill.example import Example
from compact.distill.held_out_excess import HeldOutTexts, mean_excess
from compact.distill.loss import Targets, head_loss, head_settings, joined
from compact.distill.masks import branch_inputs
from compact.distill.optimizer import PEAK
from compact.distill.padding import padded_batch, padded_length
from compact.distill.state import State

_WARMUP_STEPS = 10
_CLIP = 1.0
# If an evaluation finds more excess than the best one by this share, training goes back to the best weights. It
# continues with this factor of the learning rate. Models differ in the rate that they tolerate. Smaller differences are
# common while the rate is high, and disappear when it falls.
_WORSE, _SLOWER = 0.01, 0.3
# Number of evaluations during a run. There is another one before the first step.
_EVALUATIONS = 10


@dataclass(frozen=True)
class Schedule:
    """The budget, and how the learning rate changes.

    Attributes:
        tokens, seconds: limits, or None for no limit. Training stops at the first limit that it reaches.
        until: training also stops when an evaluation finds at most this excess over the unpruned model, as a share.
    """

    tokens: int | None = None
    seconds: float | None = None
    until: float | None = None

    def done(self, tokens: int, seconds: float) -> float:
        """Return the share of the budget that is used up. It is 1 or more at the end."""
        shares = [used / limit for used, limit in ((tokens, self.tokens), (seconds, self.seconds)) if limit]
        return max(shares, default=1.0)

    def factor(self, step: int, done: float) -> float:
        """Return the factor for the peak learning rate at a step, given the share of the budget that is used up.

        After ten steps of warm-up, it decreases linearly to 0 at the end of the budget.
        """
        return min(1.0, (step + 1) / _WARMUP_STEPS) * max(0.0, 1.0 - done)


def trained_parameters(model: Any, train: str) -> dict[str, torch.nn.Parameter]:
    """Return the parameters to train, by name, and freeze all others.

    Args:
        model: the student.
        train: `all`, or `embeddings` (the embedding and the LM head). A tied head shares the embedding's parameter.
    """
    embeddings = embeddings_of(model)
    chosen = {}
    for name, parameter in model.named_parameters():
        is_trained = train == "all" or any(parameter is one for one in embeddings)
        parameter.requires_grad_(is_trained)
        if is_trained:
            chosen[name] = parameter
    return chosen


def embeddings_of(model: Any) -> tuple[torch.nn.Parameter, torch.nn.Parameter]:
    """Return the weights of the embedding and of the LM head. They are one parameter if they are tied."""
    return model.get_input_embeddings().weight, model.get_output_embeddings().weight


@contextlib.contextmanager
def as_written(parameters: Iterable[torch.nn.Parameter], dtypes: Iterable[torch.dtype]) -> Iterator[None]:
    """Round the weights to these types within the block, and restore them afterwards.

    Training may change a weight by less than the precision of bfloat16. Evaluation must use the rounded weights,
    because these are written to the checkpoint. The copy of the weights takes no more memory than the gradients, which
    do not exist during evaluation.
    """
    originals = []
    with torch.no_grad():
        for parameter, dtype in zip(parameters, dtypes, strict=True):
            if torch.promote_types(dtype, parameter.dtype) != dtype:
                originals.append((parameter, parameter.detach().clone()))
                parameter.copy_(parameter.to(dtype))
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, original in originals:
                parameter.copy_(original)


def compute_context(device: str, dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    """Return a context for the compute type: autocast, or nothing for float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device, dtype=dtype)


def example_loss(
    model: Any, examples: Sequence[Example], *, device: str, dtype: torch.dtype
) -> tuple[torch.Tensor, float]:
    """Return the sum of the weighted losses over all rows of a batch (in nats), and the sum of the weights."""
    batch = padded_batch([example.ids for example in examples])
    where = torch.cat([row * batch.shape[1] + example.positions for row, example in enumerate(examples)])
    parts = [example.targets for example in examples]
    targets = joined(parts)
    # Pad the rows by repeating the last one with weight 0.
    filled = torch.arange(padded_length(len(where))).clamp_max(len(where) - 1)
    weights = torch.nn.functional.pad(targets.weights, (0, len(filled) - len(where)))
    where, targets = where[filled], Targets(targets.ids[filled], targets.q[filled], targets.valid[filled], weights)
    scale, cap = head_settings(model.config)
    extra = branch_inputs(model.config, examples, batch.shape[1], device)
    with compute_context(device, dtype):
        # [batch, positions, hidden_size]
        hidden = model.model(input_ids=batch.to(device), use_cache=False, **extra).last_hidden_state
        rows = hidden.reshape(-1, hidden.shape[-1])[where.to(device)]
    rows = rows.to(dtype)
    head = model.get_output_embeddings().weight
    loss = head_loss(rows, head, targets.to(rows.device), scale=scale, cap=cap)
    return loss, float(targets.weights.sum())


@dataclass(frozen=True)
class Trainer:
    """Trains one student.

    Attributes:
        model: the student in float32, on its device. It is in evaluation mode, because the dropout of some
            configurations would slow down a short training run.
        parameters: the parameters to train, by name.
        dtypes: the type in which each of them will be written.
        optimizer: the optimizer of these parameters.
        schedule: the budget.
        held_out: text for evaluation.
        device, dtype: device and compute type.
        batch_size: largest number of examples per forward pass.
        best: copy of the best weights so far, by name.
    """

    model: Any
    parameters: dict[str, torch.nn.Parameter]
    dtypes: Mapping[str, torch.dtype]
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    held_out: HeldOutTexts
    device: str
    dtype: torch.dtype
    batch_size: int
    best: dict[str, torch.Tensor] = field(default_factory=dict)

    def steps(self, groups: Iterator[list[Example]], state: State) -> Iterator[tuple[State, bool]]:
        """Train until the budget is used up.

        Args:
            groups: yields the examples of each step.
            state: state to start from. It is updated in place.

        Yields:
            The state after every step, and whether the model was just evaluated. A new run starts with an evaluation.

        Raises:
            EngineCrashedError: the model overflows.
        """
        if not state.history:
            self._judge(state, 0.0)
            yield state, True
        began = time.monotonic() - state.seconds
        total = weight = 0.0  # over the steps since the last evaluation
        judged = state.history[-1]["done"]
        while (done := self.schedule.done(state.tokens, state.seconds)) < 1.0 and not self._is_enough(state):
            group = next(groups)
            loss, rows = self._step(group, state.rate_factor * self.schedule.factor(state.step, done))
            total, weight = total + loss, weight + rows
            state.loss = total / max(weight, 1.0)
            state.step += 1
            state.pieces += world_size() * len(group)
            # All processes use the count and the clock of the first one, so that they stop at the same step.
            tokens, seconds = broadcast_json([sum(example.n_text for example in group), time.monotonic() - began])
            state.tokens += world_size() * int(tokens)
            state.seconds = float(seconds)
            done = min(1.0, self.schedule.done(state.tokens, state.seconds))
            is_due = done >= 1.0 or done - judged >= 1.0 / _EVALUATIONS
            if is_due:
                self._judge(state, state.loss)
                total, weight, judged = 0.0, 0.0, done
                if self._is_worse(state):
                    self.restore_best()
                    state.rate_factor *= _SLOWER
            yield state, is_due

    def _is_worse(self, state: State) -> bool:
        excess = [state.history[n]["mean_excess"] for n in (-1, state.best)]
        return bool(excess[0] > excess[1] + _WORSE)

    def keep_best(self) -> None:
        """Keep a copy of the weights, in the type in which they will be written."""
        for name, parameter in self.parameters.items():
            self.best[name] = parameter.detach().to(self.dtypes[name], copy=True)

    def restore_best(self) -> None:
        """Go back to the weights of `keep_best`."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.best[name])

    def _is_enough(self, state: State) -> bool:
        until = self.schedule.until
        return until is not None and bool(state.history[-1]["mean_excess"] <= until)

    def _step(self, examples: Sequence[Example], factor: float) -> tuple[float, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = factor * group[PEAK]
        total = weight = 0.0
        for start in range(0, len(examples), self.batch_size):
            batch = examples[start : start + self.batch_size]
            loss, rows = example_loss(self.model, batch, device=self.device, dtype=self.dtype)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
            weight += rows
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        for gradient in gradients:
            gradient /= max(weight, 1.0)
        all_reduce_mean_(gradients)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), _CLIP)
        # Skip the step on overflow, which would turn every weight into NaN. All processes have the same gradients, so
        # they all skip it.
        is_finite = bool(norm.isfinite())
        if is_finite:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return (total, weight) if is_finite and math.isfinite(total) else (0.0, 0.0)

    def _judge(self, state: State, loss: float) -> None:
        dtypes = [self.dtypes[name] for name in self.parameters]
        with as_written(self.parameters.values(), dtypes), compute_context(self.device, self.dtype):
            found = self.held_out.evaluate(self.model)
        if not all(math.isfinite(loss.bits_per_byte) for loss in found.values()):
            raise EngineCrashedError(
                f"recovery: the model overflows after {state.step} steps", "use a lower --learning-rate"
            )
        entry = {
            "step": state.step,
            "tokens": state.tokens,
            "seconds": round(state.seconds, 1),
            "done": self.schedule.done(state.tokens, state.seconds),
            "loss": loss,
            "bits_per_byte": {name: one.bits_per_byte for name, one in found.items()},
            "excess": {name: one.excess for name, one in found.items()},
            "excess_in_split_words": {name: one.split_words for name, one in found.items()},
            "mean_excess": mean_excess(found),
        }
        state.history.append(entry)
        if entry["mean_excess"] < state.history[state.best]["mean_excess"]:
            state.best = len(state.history) - 1
        if state.best == len(state.history) - 1:
            self.keep_best()
