"""A batch of texts of different lengths, against torch's own cross-entropy on each text alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from compact.distill.example import Example
from compact.distill.loss import Targets
from compact.distill.optimizer import make_optimizer
from compact.distill.train import Schedule, example_loss
from compact.forward.load import load_model
from compact.pruning.recover_options import RelativeRates
from tests.checkpoints import random_model

# One that is a whole number of kernel shapes, and two that are not.
LENGTHS = (64, 37, 5)
NONE = np.zeros(0, dtype=np.int64)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = random_model(tmp_path_factory.mktemp("model") / "m", "LlamaForCausalLM")
    return load_model(directory, device="cpu", dtype=torch.float32)


def example(length: int, vocab_size: int) -> Example:
    """Every second position shall say the next token, with a weight of its own."""
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(0, vocab_size, (length,), generator=generator)
    positions = torch.arange(0, length - 1, 2)
    n = len(positions)
    ones = torch.ones(n, 1)
    weights = torch.rand(n, generator=generator)
    targets = Targets(ids[positions + 1][:, None], ones, ones.bool(), weights)
    return Example(ids.tolist(), positions, targets, NONE, NONE)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


def test_texts_of_different_lengths_count_as_each_of_them_alone(model: Any) -> None:
    examples = [example(length, model.config.vocab_size) for length in LENGTHS]
    loss, weight = example_loss(model, examples, device="cpu", dtype=torch.float32)
    loss.backward()  # type: ignore[no-untyped-call]
    made = gradients(model)

    expected = torch.zeros(())
    for one in examples:
        logits = model(input_ids=torch.tensor([one.ids])).logits[0, one.positions]
        each = torch.nn.functional.cross_entropy(logits, one.targets.ids[:, 0], reduction="none")
        expected = expected + (each * one.targets.weights).sum()
    expected.backward()  # type: ignore[no-untyped-call]

    assert weight == pytest.approx(sum(float(one.targets.weights.sum()) for one in examples))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(made[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_the_rate_falls_linearly_to_nothing_over_whichever_budget_ends_first() -> None:
    minutes, both = Schedule(seconds=60.0), Schedule(tokens=1000, seconds=60.0)
    assert [minutes.done(10**9, seconds) for seconds in (0, 15, 60)] == [0, 0.25, 1]
    assert both.done(500, 6.0) == both.done(100, 30.0) == 0.5
    # Behind the first steps, which begin slowly.
    assert [minutes.factor(100, done) for done in (0, 0.25, 0.5, 1)] == pytest.approx([1, 0.75, 0.5, 0])
    first = [minutes.factor(step, 0.0) for step in range(12)]
    assert 0 < first[0] < 0.2
    assert sorted(first) == first


@pytest.mark.parametrize("size", [0.2, 0.002])
def test_a_relative_rate_changes_small_weights_as_much_as_large_ones(size: float) -> None:
    draw = torch.Generator().manual_seed(0)
    matrix, embedding = (torch.nn.Parameter(size * torch.randn(64, 32, generator=draw)) for _ in range(2))
    vector, empty = torch.nn.Parameter(torch.full((8,), 0.5)), torch.nn.Parameter(torch.zeros(4, 4))
    parameters = [matrix, embedding, vector, empty]
    before = [one.detach().clone() for one in parameters]
    optimizer = make_optimizer(parameters, RelativeRates(1e-2, 5e-2, 1), [embedding])
    for group in optimizer.param_groups:
        group["lr"] = group["peak"]
    for one in parameters:
        one.grad = torch.ones_like(one)
    optimizer.step()
    # The first step of AdamW moves every weight by the learning rate.
    roots = [float(before[0].square().mean().sqrt()), float(before[1].square().mean().sqrt())]
    middle = sum(roots) / 2
    expected = [1e-2 * roots[0], 5e-2 * roots[1], 1e-2 * middle, 1e-2 * middle]
    for one, earlier, moved in zip(parameters, before, expected, strict=True):
        torch.testing.assert_close(earlier - one.detach(), torch.full_like(one, moved), rtol=1e-2, atol=1e-7)
