"""The record of a training run in a plan (`PrunePlan.recovery`), in words."""

from __future__ import annotations

from collections.abc import Mapping


def changes(before: Mapping[str, float], after: Mapping[str, float], unpruned: Mapping[str, float]) -> str:
    """Return the change of every held-out text in one line.

    Args:
        before, after: bits per byte before and after the training, by text.
        unpruned: bits per byte of the unpruned model. Plans of older versions do not have them.

    Example:
        >>> changes({"wikitext": 1.12}, {"wikitext": 1.05}, {"wikitext": 1.0})
        'wikitext 1.1200 -> 1.0500 (+12.0% -> +5.0%)'
    """
    parts = []
    for name, first in before.items():
        words = f"{name} {first:.4f} -> {after[name]:.4f}"
        if name in unpruned:
            words += f" ({first / unpruned[name] - 1:+.1%} -> {after[name] / unpruned[name] - 1:+.1%})"
        parts.append(words)
    return ", ".join(parts)
