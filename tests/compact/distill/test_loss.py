"""The LM head's loss and gradients, against torch's own on the whole matrix of logits."""

from __future__ import annotations

import pytest
import torch

from compact.distill.loss import Targets, head_loss

ROWS, VOCAB, WIDTH, K = 600, 50, 16, 5  # more rows than are computed at once


def _targets() -> Targets:
    draw = torch.Generator().manual_seed(1)
    ids = torch.stack([torch.randperm(VOCAB, generator=draw)[:K] for _ in range(ROWS)])
    q = torch.rand(ROWS, K, generator=draw)
    q = q / q.sum(1, keepdim=True) * torch.rand(ROWS, 1, generator=draw)  # the rest is the tail
    valid = torch.ones(ROWS, K, dtype=torch.bool)
    valid[::3, 2:] = False
    q[::7], valid[::7] = 0, False
    q[::7, 0], valid[::7, 0] = 1, True  # cross-entropy rows
    q = torch.where(valid, q, 0)
    ids = torch.where(valid, ids, ids[:, :1])
    return Targets(ids, q, valid, torch.rand(ROWS, generator=draw))


def _reference(logits: torch.Tensor, targets: Targets) -> torch.Tensor:
    log_p = logits.log_softmax(-1)
    q = torch.zeros_like(logits).scatter_add_(1, targets.ids, targets.q)
    is_listed = torch.zeros_like(logits, dtype=torch.bool)
    for row in range(ROWS):
        is_listed[row, targets.ids[row][targets.valid[row]]] = True
    tail = 1 - q.sum(1)
    rest = log_p.masked_fill(is_listed, -torch.inf).logsumexp(1)
    listed = torch.nn.functional.kl_div(log_p, q, reduction="none").sum(1)
    others = torch.where(tail > 1e-6, tail * (tail.clamp_min(1e-30).log() - rest), 0)
    return ((listed + others) * targets.weights).sum()


@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.25, None), (1.0, 3.0), (0.5, 3.0)])
def test_loss_and_gradients(scale: float, cap: float | None) -> None:
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, WIDTH, generator=draw).requires_grad_()
    weight = torch.randn(VOCAB, WIDTH, generator=draw).requires_grad_()
    targets = _targets()
    loss = head_loss(hidden, weight, targets, scale=scale, cap=cap)
    (2 * loss).backward()
    own = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    logits = hidden @ weight.T * scale
    if cap is not None:
        logits = torch.tanh(logits / cap) * cap
    expected = _reference(logits, targets)
    (2 * expected).backward()
    torch.testing.assert_close(loss, expected.float(), rtol=1e-5, atol=1e-3)
    for mine, theirs in zip(own, (hidden.grad, weight.grad), strict=True):
        assert mine is not None
        assert theirs is not None
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_nothing_is_lost_where_the_student_says_what_it_should() -> None:
    logits = torch.randn(8, VOCAB, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(VOCAB).expand(8, -1)
    targets = Targets(ids, logits.softmax(-1), torch.ones_like(ids, dtype=torch.bool), torch.ones(8))
    assert float(head_loss(logits, torch.eye(VOCAB), targets)) == pytest.approx(0, abs=1e-5)
