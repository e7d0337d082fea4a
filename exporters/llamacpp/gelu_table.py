"""llama.cpp's GELU on the CPU.

llama.cpp looks GELU up in a float16 table, which rounds input and output to float16 (ggml, `vec.h`). Transformers
computes it in float32. The gate must know how much of a difference comes from this rounding. Otherwise every model
with GeGLU (Gemma) would fail a comparison that Llama passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# ggml returns 0 at or below the first and x at or above the second.
_LOWEST, _HIGHEST = -10.0, 10.0


def gelu_by_table(x: torch.Tensor) -> torch.Tensor:
    """Compute GELU (tanh approximation) as ggml's table does. `x` and the result: float32, any shape."""
    import torch

    rounded = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
    return torch.where(x <= _LOWEST, torch.zeros_like(x), torch.where(x >= _HIGHEST, x, rounded))


@contextmanager
def table_in(model: Any) -> Iterator[bool]:
    """Let the layers of a Transformers model use the table inside the `with` block. Yield whether their FFNs use GELU.

    In addition to the FFN, a layer of Gemma 4 applies GELU to its per-layer embedding.
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
