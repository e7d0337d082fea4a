"""Estimates speeds from the bytes that are read and the weights that are multiplied, without running anything.

Decoding one token reads all weights once, and multiplies each of them only once. So decoding is limited by the memory
bandwidth on usual devices. The estimate is an upper bound. A device is slower if its kernels for a type are limited by
arithmetic instead (on small CPU cores: the IQ types, whose values are looked up in tables), or if other programs use
the memory. Prefill multiplies each weight by many tokens, so it is limited by arithmetic. Its speed depends too much on
the kernels for an estimate, so only the ratio of two models of one type is computed. Attention over earlier positions
and the LM head are left out: prefill computes the logits of one position only.

Used by limits such as `build --min-speed`.
"""

from __future__ import annotations


def decode_tokens_per_second(bytes_per_token: int, kv_bytes: int, bandwidth: float) -> float:
    """Estimate the decode speed while a generation fills the context.

    Args:
        bytes_per_token: bytes of weights that one token reads (`ArtifactSizes.bytes_per_token`).
        kv_bytes: bytes of the full key-value cache (`ArtifactSizes.kv_bytes`). On average, half of it is read.
        bandwidth: bytes per second that the device reads from memory.
    """
    return bandwidth / (bytes_per_token + kv_bytes / 2)


def characters_per_second(tokens_per_second: float, characters_per_token: float) -> float:
    """Return a speed in characters per second. It compares vocabularies fairly: a smaller one has shorter tokens."""
    return tokens_per_second * characters_per_token


def prefill_ratio(
    weights_before: int,
    weights_after: int,
    *,
    characters_per_token_before: float = 1.0,
    characters_per_token_after: float = 1.0,
) -> float:
    """Return the prefill speed after pruning divided by the speed before, in characters per second.

    Args:
        weights_before, weights_after: weights that are multiplied per token (`ArtifactSizes.weights_per_token`).
        characters_per_token_before, characters_per_token_after: averages on the same text. Without them, the ratio is
            that of tokens per second.
    """
    return weights_before / weights_after * characters_per_token_after / characters_per_token_before
