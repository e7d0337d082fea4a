"""Model shapes, and how much of a model a budget removes, counted by hand."""

from __future__ import annotations

from compact.pruning.budget import Limits, Parts, Sizes
from compact.pruning.importance import vocabulary_grid
from compact.search.find import Curve


def parts_of(vocab: int, inner: int, hidden: int, layers: int, *, tied: bool = True, kv: int = 1) -> Parts:
    """Parts of a Llama layout, counted by hand: kv is the share of key and value heads."""
    per_row = hidden if tied else 2 * hidden
    attention = layers * (2 * hidden * hidden + 2 * hidden * hidden // kv)
    return Parts(
        vocabulary=vocab * per_row,
        attention=attention,
        ffn=3 * hidden * inner * layers,
        norms=(2 * layers + 1) * hidden,
        other=0,
        per_row=per_row,
        per_channel=3 * hidden * layers,
    )


# name -> (V, I, H, layers, tied, kv)
SHAPES = {
    "smollm2-135m": (49152, 1536, 576, 30, True, 3),
    "qwen2.5-0.5b": (151936, 4864, 896, 24, True, 7),
    "gemma-like-1b": (262144, 6912, 1152, 26, True, 4),
    "llama-8b": (128256, 14336, 4096, 32, False, 4),
    "llama-70b": (128256, 28672, 8192, 80, False, 8),
}


def removed(sizes: Sizes, parts: Parts, limits: Limits) -> float:
    """Share of all parameters that is gone, counted from the sizes kept."""
    kept = sizes.vocab_size * parts.per_row + sizes.intermediate_size * parts.per_channel
    whole = limits.vocab_size * parts.per_row + limits.intermediate_size * parts.per_channel
    return (whole - kept) / (parts.vocabulary + parts.attention + parts.ffn + parts.norms)


def real_curve(name: str, grid: int = 32, multiple: int = 1) -> tuple[Curve, Parts, Limits]:
    vocab, inner, hidden, layers, tied, kv = SHAPES[name]
    parts = parts_of(vocab, inner, hidden, layers, tied=tied, kv=kv)
    limits = Limits(vocab, inner, 300, grid, multiple)
    return Curve(parts, limits, vocabulary_grid(vocab, 300, multiple=multiple)), parts, limits
