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
    """Let the layers of a Transformers model compute with the table meanwhile; yields whether their FFNs have GELU.

    Beside the FFN, a layer of Gemma 4 has a GELU on what the per-layer embedding gives it.
    """
    import torch

    class Table(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return gelu_by_table(x)

    places = [part for layer in model.model.layers for part in (layer, layer.mlp) if hasattr(part, "act_fn")]
    before = [place.act_fn for place in places]
    if not all("gelu" in type(act_fn).__name__.lower() for act_fn in before):
        yield False
        return
    try:
        for place in places:
            place.act_fn = Table()
        yield True
    finally:
        for place, act_fn in zip(places, before, strict=True):
            place.act_fn = act_fn
