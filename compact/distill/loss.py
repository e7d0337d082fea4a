"""The loss of distillation, and the LM head under it, a few rows of logits at a time.

A row's target is a distribution q over a few tokens and what is left of it, `tail`, for all others together. With p the
student's distribution, `KL(q || p) = sum over listed s of q_s log(q_s / p_s) + tail log(tail / rest)`, where `rest` is
the student's mass outside the listed tokens. One-hot q and no tail make it the cross-entropy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

# Rows of logits that are alive at once: 256 x 262,144 x 4 bytes are 268 MB.
_ROWS = 256
_SMALLEST = 1e-7


@dataclass(frozen=True)
class Targets:
    """What a student should say at N rows.

    Attributes:
        ids: int64 [N, k], tokens of the student; a row's spare places repeat its first token.
        q: float32 [N, k], their probabilities; 0 in spare places.
        valid: bool [N, k], False in spare places.
        weights: float32 [N], of the row in the loss.
    """

    ids: torch.Tensor
    q: torch.Tensor
    valid: torch.Tensor
    weights: torch.Tensor

    def to(self, device: torch.device) -> Targets:
        return Targets(self.ids.to(device), self.q.to(device), self.valid.to(device), self.weights.to(device))


def head_logits(rows: torch.Tensor, matrix: torch.Tensor, scale: float, cap: float | None) -> torch.Tensor:
    """float32 logits [N, vocab_size] of hidden states [N, hidden_size]; scale and cap as `head_settings` gives them."""
    logits = (rows @ matrix.T).float() * scale
    return logits if cap is None else torch.tanh(logits / cap) * cap


class _HeadLoss(torch.autograd.Function):
    """Sum of weighted KL. The gradients are made on the way forward, so that no logits are kept."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: Targets, scale: float, cap: float | None
    ) -> torch.Tensor:
        matrix = weight.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight)
        total = torch.zeros((), dtype=torch.float64 if hidden.device.type != "mps" else torch.float32)
        for start in range(0, hidden.shape[0], _ROWS):
            part = slice(start, start + _ROWS)
            rows = hidden[part]
            logits = head_logits(rows, matrix, scale, cap)
            loss, grad = _rows_loss(logits, targets, part)
            total += loss.to(total)
            if cap is not None:
                grad *= 1 - (logits / cap).square()
            grad = (grad * scale if scale != 1.0 else grad).to(hidden.dtype)
            grad_hidden[part] = grad @ matrix
            grad_weight += grad.T @ rows
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total.to(torch.float32).to(hidden.device)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        (upstream,) = grads
        # In place: a copy of the head's gradient is gigabytes where the vocabulary is large. Nothing goes back twice.
        return grad_hidden.mul_(upstream), grad_weight.mul_(upstream), None, None, None


def _rows_loss(logits: torch.Tensor, targets: Targets, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """(weighted sum of the rows' losses, its gradient for the logits)."""
    ids, q, valid, weights = targets.ids[part], targets.q[part], targets.valid[part], targets.weights[part]
    normaliser = logits.logsumexp(dim=1, keepdim=True)
    listed = logits.gather(1, ids) - normaliser
    p = listed.exp()
    tail = (1 - q.sum(1)).clamp_min(0)
    rest = (1 - (p * valid).sum(1)).clamp_min(_SMALLEST)
    divergence = torch.where(q > 0, q * (q.clamp_min(_SMALLEST).log() - listed), 0).sum(1)
    divergence += torch.where(tail > 0, tail * (tail.clamp_min(_SMALLEST).log() - rest.log()), 0)
    grad = logits.sub(normaliser).exp_()
    grad *= (weights * (1 - tail / rest))[:, None]
    # Spare places repeat the first token, and so must write what it writes.
    own = weights[:, None] * (p - q)
    grad.scatter_(1, ids, torch.where(valid, own, own[:, :1]))
    return (weights * divergence).sum(), grad


def head_loss(
    hidden: torch.Tensor, weight: torch.Tensor, targets: Targets, *, scale: float = 1.0, cap: float | None = None
) -> torch.Tensor:
    """Weighted sum of the rows' KL to their targets, in nats.

    Args:
        hidden: [N, hidden_size], the last norm's output.
        weight: [vocab_size, hidden_size] of the LM head.
        targets: of the N rows.
        scale: what the logits are multiplied by (Granite: 1 / `logits_scaling`).
        cap: `final_logit_softcapping` (Gemma 2).
    """
    result: torch.Tensor = _HeadLoss.apply(hidden, weight, targets, scale, cap)  # type: ignore[no-untyped-call]
    return result


def head_settings(config: Any) -> tuple[float, float | None]:
    """(scale, cap) of a model's logits, for `head_loss`."""
    scaling = getattr(config, "logits_scaling", None)
    cap = getattr(config, "final_logit_softcapping", None)
    return (1.0 / float(scaling) if scaling else 1.0), (float(cap) if cap else None)
