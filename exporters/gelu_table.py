"""llama.cpp's GELU on the CPU: a table over float16, so input and output are rounded to float16 (ggml, `vec.h`).

Transformers computes it in float32. The gate must know how much of a difference is that rounding, or every model with
GeGLU (Gemma) would fail a comparison that Llama passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Beyond these ggml takes 0 and x itself.
_LOWEST, _HIGHEST = -10.0, 10.0


def gelu_by_table(x: torch.Tensor) -> torch.Tensor:
    """GELU (tanh approximation) as ggml's table gives it; any shape, float32."""
    import torch

    rounded = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
    return torch.where(x <= _LOWEST, torch.zeros_like(x), torch.where(x >= _HIGHEST, x, rounded))


@contextmanager
def table_in(model: Any) -> Iterator[bool]:
    """Let a Transformers model compute its FFNs with the table meanwhile; yields whether it has GELU at all."""
    import torch

    class Table(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return gelu_by_table(x)

    ffns = [layer.mlp for layer in model.model.layers]
    before = [ffn.act_fn for ffn in ffns]
    if not all("gelu" in type(act_fn).__name__.lower() for act_fn in before):
        yield False
        return
    try:
        for ffn in ffns:
            ffn.act_fn = Table()
        yield True
    finally:
        for ffn, act_fn in zip(ffns, before, strict=True):
            ffn.act_fn = act_fn
