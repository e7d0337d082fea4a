"""Position ids and attention masks of texts with branches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from compact.distill.branches import visible
from compact.distill.example import Example

_SLIDING, _FULL = "sliding_attention", "full_attention"


def branch_inputs(config: Any, examples: Sequence[Example], length: int, device: str) -> dict[str, Any]:
    """Return the inputs of a Transformers model, other than the ids, for a batch of texts with branches.

    Args:
        config: the model's configuration. It says which layers have a sliding window.
        examples: the texts.
        length: padded length of the batch, L.
        device: device of the model.

    Returns:
        `position_ids` int64 [batch, L] and `attention_mask` [batch, 1, L, L], or one such mask per layer type.
        Empty if no text has branches: then the model's own causal mask is right, and faster.
    """
    if not any(len(example.parents) for example in examples):
        return {}
    position_ids = torch.zeros(len(examples), length, dtype=torch.int64)
    # Padding sees itself only: a row without a visible position would give NaN.
    seen = torch.eye(length, dtype=torch.bool).repeat(len(examples), 1, 1)
    for row, example in enumerate(examples):
        ids = np.concatenate([np.arange(example.n_text), example.position_ids])
        position_ids[row, : len(ids)] = torch.from_numpy(ids)
        seen[row, : len(ids), : len(ids)] = torch.from_numpy(visible(example.n_text, example.parents))
    window = getattr(config, "sliding_window", None)
    near = seen
    if window is not None:
        near = seen & (position_ids[:, :, None] - position_ids[:, None, :] < window)
    full, sliding = (_form(config, mask)[:, None].to(device) for mask in (seen, near))
    layer_types = set(getattr(config, "layer_types", None) or ())
    if _SLIDING in layer_types:
        return {"position_ids": position_ids.to(device), "attention_mask": {_FULL: full, _SLIDING: sliding}}
    every_layer_slides = window is not None and not layer_types
    return {"position_ids": position_ids.to(device), "attention_mask": sliding if every_layer_slides else full}


def _form(config: Any, seen: torch.Tensor) -> torch.Tensor:
    """Return a mask in the form that the attention takes: bool, or float32 to add (Gemma 2 computes without SDPA)."""
    if config._attn_implementation == "sdpa":
        return seen
    return torch.zeros(seen.shape).masked_fill_(~seen, torch.finfo(torch.float32).min)
