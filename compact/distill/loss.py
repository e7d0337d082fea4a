"""Compute the distillation loss together with the LM head, a few rows of logits at a time.

The target of a row is a distribution q over a few listed tokens. Its remaining mass, `tail`, belongs to all other
tokens together. With the student's distribution p, the loss is

    KL(q || p) = sum over listed s of q_s log(q_s / p_s) + tail log(tail / rest)

where `rest` is the student's mass outside the listed tokens. With a one-hot q and no tail, this is the cross-entropy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

# Number of rows whose logits are in memory at once. With a vocabulary of 262,144, 256 rows of float32 take 268 MB.
_ROWS = 256
_SMALLEST = 1e-7


@dataclass(frozen=True)
class Targets:
    """Target distributions of the student for N rows. Rows with fewer than k tokens are padded.

    Attributes:
        ids: int64 [N, k], the student's ids of the listed tokens. Padding repeats the row's first id.
        q: float32 [N, k], their probabilities. 0 in padding.
        valid: bool [N, k], False in padding.
        weights: float32 [N], weight of each row in the loss.
    """

    ids: torch.Tensor
    q: torch.Tensor
    valid: torch.Tensor
    weights: torch.Tensor

    def to(self, device: torch.device) -> Targets:
        return Targets(self.ids.to(device), self.q.to(device), self.valid.to(device), self.weights.to(device))


def joined(parts: Sequence[Targets]) -> Targets:
    """Join targets. All rows get the largest k."""
    k = max(part.ids.shape[1] for part in parts)

    def wide(values: torch.Tensor, repeat_first: bool) -> torch.Tensor:
        missing = k - values.shape[1]
        if not missing:
            return values
        tail = values[:, :1].expand(-1, missing) if repeat_first else values.new_zeros(len(values), missing)
        return torch.cat([values, tail], dim=1)

    return Targets(
        torch.cat([wide(part.ids, repeat_first=True) for part in parts]),
        torch.cat([wide(part.q, repeat_first=False) for part in parts]),
        torch.cat([wide(part.valid, repeat_first=False) for part in parts]),
        torch.cat([part.weights for part in parts]),
    )


def head_logits(rows: torch.Tensor, matrix: torch.Tensor, scale: float, cap: float | None) -> torch.Tensor:
    """Return float32 logits [N, vocab_size].

    Args:
        rows: hidden states [N, hidden_size].
        matrix: weight of the LM head [vocab_size, hidden_size].
        scale, cap: values from `head_settings`.
    """
    logits = (rows @ matrix.T).float() * scale
    return logits if cap is None else torch.tanh(logits / cap) * cap


class _HeadLoss(torch.autograd.Function):
    """Weighted sum of KL. The forward pass computes the gradients too, so that no logits are stored."""

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
            logits = head_logits(rows, matrix, scale, cap)  # [rows, vocab_size]
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
        # Multiply in place: with a large vocabulary, a copy of the head's gradient takes gigabytes. This is safe
        # because the backward pass runs only once.
        return grad_hidden.mul_(upstream), grad_weight.mul_(upstream), None, None, None


def _rows_loss(logits: torch.Tensor, targets: Targets, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weighted sum of the rows' losses, and its gradient with respect to the logits [rows, vocab_size]."""
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
    # Padding repeats the first id, so `scatter_` must write the first token's value there too.
    values = weights[:, None] * (p - q)
    grad.scatter_(1, ids, torch.where(valid, values, values[:, :1]))
    return (weights * divergence).sum(), grad


def head_loss(
    hidden: torch.Tensor, weight: torch.Tensor, targets: Targets, *, scale: float = 1.0, cap: float | None = None
) -> torch.Tensor:
    """Compute the weighted sum of the rows' KL divergence from their targets, in nats.

    Args:
        hidden: output of the last norm [N, hidden_size].
        weight: weight of the LM head [vocab_size, hidden_size].
        targets: targets of the N rows.
        scale: factor for the logits (Granite: 1 / `logits_scaling`).
        cap: `final_logit_softcapping` (Gemma 2), or None.
    """
    result: torch.Tensor = _HeadLoss.apply(hidden, weight, targets, scale, cap)  # type: ignore[no-untyped-call]
    return result


def head_settings(config: Any) -> tuple[float, float | None]:
    """Return (scale, cap) of a model's logits, for `head_loss`."""
    scaling = getattr(config, "logits_scaling", None)
    cap = getattr(config, "final_logit_softcapping", None)
    return (1.0 / float(scaling) if scaling else 1.0), (float(cap) if cap else None)
