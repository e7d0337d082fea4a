"""Where the parameters are, and what sizes a budget means.

Default split of a ratio between vocabulary and FFN: both lose a share of their own parameters, the vocabulary
`VOCABULARY_WEIGHT` times the FFN's share. A small model, whose parameters are mostly vocabulary, so loses mostly
vocabulary, and a large one FFN channels (the scale-adaptive lever of COMPACT, arXiv 2509.06836).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from compact.architectures.layout import EMBEDDINGS, OUTPUT, PER_LAYER_EMBEDDING, expected_shapes
from compact.architectures.table import family_of
from compact.base.errors import BudgetError
from compact.checkpoints.shards import TensorRef
from compact.pruning.importance import vocabulary_grid

DEFAULT_RATIO = 0.2
# The share of its parameters that the vocabulary loses, over the share that the FFN loses. Set by
# `benchmarks/quality/splits.py` on SmolLM2-135M; docs/quality.md has the table.
# `benchmarks/quality/splits.py` on SmolLM2-135M; docs/quality.md has the table.
VOCABULARY_WEIGHT = 2.0
# How far from the ratio asked for the sizes may land, as a share of all parameters.
TOLERANCE = 0.005
# How far from `--split V:I` the sizes may land, as a share of what is removed.
SHARE_TOLERANCE = 0.1
# Wider than this and the vocabulary leaves the grid that scores are collected on, at the price of a new calibration.
_GRID_TOLERANCE = 0.0025


@dataclass(frozen=True)
class Parts:
    """Parameters by part.

    Attributes:
        vocabulary: embeddings and LM head; a tied head is counted once.
        per_row: of one vocabulary entry.
        per_channel: of one FFN channel in every layer.
        lm_head: what of `vocabulary` is an LM head of its own.
        per_layer: what of `vocabulary` is a per-layer embedding (Gemma 4).
    """

    vocabulary: int
    attention: int
    ffn: int
    norms: int
    other: int
    per_row: int
    per_channel: int
    lm_head: int = 0
    per_layer: int = 0

    @property
    def embedding(self) -> int:
        """Parameters of the input embedding."""
        return self.vocabulary - self.lm_head - self.per_layer

    @property
    def total(self) -> int:
        return self.vocabulary + self.attention + self.ffn + self.norms + self.other

    @property
    def vocabulary_parts(self) -> dict[str, int]:
        """What the vocabulary's parameters are; a per-layer embedding only where there is one."""
        per_layer = {"per_layer_embedding": self.per_layer} if self.per_layer else {}
        return {"embedding": self.embedding, **per_layer, "lm_head": self.lm_head}

    def as_dict(self) -> dict[str, int]:
        return {
            "vocabulary": self.vocabulary,
            "attention": self.attention,
            "ffn": self.ffn,
            "norms": self.norms,
            "other": self.other,
            "total": self.total,
        }


def part_of(name: str) -> str:
    """The part that a tensor of an HF name belongs to."""
    if name in EMBEDDINGS:
        return "vocabulary"
    if "norm" in name.rsplit(".", 2)[-2]:
        return "norms"
    if ".self_attn." in name or ".linear_attn." in name:
        return "attention"
    if ".mlp." in name:
        return "ffn"
    return "other"


def count_parts(tensors: Mapping[str, TensorRef], config: Mapping[str, Any]) -> Parts:
    """Count every tensor of a checkpoint once (a tied `lm_head` is no tensor of its own)."""
    return _count({name: ref.n_elements for name, ref in tensors.items()}, config)


def count_config(config: Mapping[str, Any], where: str) -> Parts:
    """What `count_parts` would count in a checkpoint with this config.json, without its tensors.

    Args:
        config: config.json, its sizes checked (positive integers, a sensible number of layers).
        where: its path, for messages.

    Raises:
        UnsupportedArchitectureError, MixtureOfExpertsError: no row of the family table fits.
    """
    # The bound on layers is the number of tensors; here there are none, and the caller has checked the layers.
    shapes = expected_shapes(family_of(config, where), config, int(config["num_hidden_layers"]), where)
    return _count({name: math.prod(shape) for name, shape in shapes.items()}, config)


def _count(elements: Mapping[str, int], config: Mapping[str, Any]) -> Parts:
    counts = dict.fromkeys(("vocabulary", "attention", "ffn", "norms", "other"), 0)
    for name, count in elements.items():
        counts[part_of(name)] += count
    down_biases = sum(count for name, count in elements.items() if ".mlp." in name and name.endswith("down_proj.bias"))
    return Parts(
        **counts,
        per_row=counts["vocabulary"] // int(config["vocab_size"]),
        per_channel=(counts["ffn"] - down_biases) // int(config["intermediate_size"]),
        lm_head=elements.get(OUTPUT, 0),
        per_layer=elements.get(PER_LAYER_EMBEDDING, 0),
    )


@dataclass(frozen=True)
class Sizes:
    """The pruned model's sizes."""

    vocab_size: int
    intermediate_size: int


@dataclass(frozen=True)
class Shares:
    """`--split V:I`: how the removed parameters are shared between vocabulary and FFN.

    Attributes:
        vocabulary: the vocabulary's share, 0 to 1.
        text: as the user wrote it.
    """

    vocabulary: float
    text: str


@dataclass(frozen=True)
class Limits:
    """What the sizes may be.

    Attributes:
        vocab_size, intermediate_size: the source's, the largest.
        smallest_vocab_size: what is always kept.
        channel_grid: what the quantization wants `intermediate_size` to be a multiple of.
        vocab_multiple: what the user wants `vocab_size` to be a multiple of.
    """

    vocab_size: int
    intermediate_size: int
    smallest_vocab_size: int
    channel_grid: int = 1
    vocab_multiple: int = 1


def explicit_sizes(vocab_size: int | None, intermediate_size: int | None, limits: Limits) -> Sizes:
    """The sizes that the user gave, checked. Raises BudgetError for a size out of range or off the grid."""
    inner = limits.intermediate_size if intermediate_size is None else intermediate_size
    if not 1 <= inner <= limits.intermediate_size:
        raise BudgetError(f"--intermediate-size {inner}: this model has 1 to {limits.intermediate_size}")
    grid = limits.channel_grid
    if intermediate_size is not None and inner % grid:
        near = ", ".join(str(v) for v in (inner // grid * grid, (inner // grid + 1) * grid) if v)
        raise BudgetError(
            f"--intermediate-size {inner}: the quantization needs a multiple of {grid}", f"the nearest are {near}"
        )
    if vocab_size is None:
        # Rows are only dropped, never invented: the multiple below the source's size.
        return Sizes(limits.vocab_size // limits.vocab_multiple * limits.vocab_multiple, inner)
    multiple = limits.vocab_multiple
    if vocab_size % multiple:
        near = f"{vocab_size // multiple * multiple} and {(vocab_size // multiple + 1) * multiple}"
        raise BudgetError(
            f"--vocab-size {vocab_size}: --pad-vocab-to-multiple-of {multiple} does not divide it",
            f"the nearest are {near}",
        )
    if not limits.smallest_vocab_size <= vocab_size <= limits.vocab_size:
        raise BudgetError(
            f"--vocab-size {vocab_size}: this model can have {limits.smallest_vocab_size} to {limits.vocab_size}",
            "byte tokens, special tokens and tokens that you name are always kept",
        )
    return Sizes(vocab_size, inner)


def sizes_for_ratio(ratio: float, parts: Parts, limits: Limits, split: Shares | None = None) -> Sizes:
    """Sizes that remove `ratio` of all parameters, within 0.5 points.

    Args:
        ratio: share of all parameters to remove, 0 < ratio < 1.
        parts: where the parameters are.
        limits: ranges and grids.
        split: how what is removed is shared between vocabulary and FFN, to the grid's nearest; None takes the default.

    Raises:
        BudgetError: the ratio is out of range, vocabulary and FFN together cannot give that much, or the grids have no
            sizes that share it so.
    """
    wanted = wanted_parameters(ratio, parts, limits)
    if split is not None:
        _check_shares(split, ratio, parts, limits)
    ideal = _default_inner(wanted, parts, limits)
    candidates = [_complete(inner, wanted, parts, limits) for inner in _inner_candidates(ideal, limits)]
    reached = [
        (abs(removed_parameters(s, parts, limits) - wanted) / parts.total, n, s) for n, s in enumerate(candidates)
    ]
    near = [found for found in reached if found[0] <= TOLERANCE]
    if near and split is not None:
        return nearest_share(split, [sizes for _, _, sizes in near], parts, limits)
    error, _, sizes = near[0] if near else min(reached)
    if error > TOLERANCE:
        nearest = removed_parameters(sizes, parts, limits) / parts.total
        raise BudgetError(
            f"--ratio {ratio:g}: the grids' nearest ratio is {nearest:.3f}",
            "choose --vocab-size and --intermediate-size yourself",
        )
    return sizes


def wanted_parameters(ratio: float, parts: Parts, limits: Limits) -> float:
    """How many parameters a ratio removes. Raises BudgetError where vocabulary and FFN cannot give them."""
    if not 0.0 < ratio < 1.0:
        raise BudgetError(f"--ratio {ratio:g}: out of range", "give the share of parameters to remove, between 0 and 1")
    wanted = ratio * parts.total
    most = sum(removable_parameters(parts, limits))
    if wanted > most + TOLERANCE * parts.total:
        raise BudgetError(
            f"--ratio {ratio:g}: not reachable, vocabulary and FFN can give at most {most / parts.total:.2f}",
            "ask for a smaller ratio",
        )
    return wanted


def _check_shares(split: Shares, ratio: float, parts: Parts, limits: Limits) -> None:
    rows, channels = removable_parameters(parts, limits)
    for name, share, most in (("vocabulary", split.vocabulary, rows), ("FFN", 1.0 - split.vocabulary, channels)):
        if share * ratio * parts.total > most + TOLERANCE * parts.total:
            raise BudgetError(
                f"--split {split.text}: the {name} can give {most / parts.total:.3f} of the parameters, "
                f"its share of --ratio {ratio:g} is {share * ratio:.3f}",
                "ask for a smaller ratio, or move the split",
            )


def vocabulary_share(sizes: Sizes, parts: Parts, limits: Limits) -> float:
    """Of the parameters that these sizes remove, the vocabulary's share."""
    rows, channels = _removed(sizes, parts, limits)
    return rows / max(1, rows + channels)


def nearest_share(split: Shares, candidates: Sequence[Sizes], parts: Parts, limits: Limits) -> Sizes:
    """The candidate whose removed parameters are shared as asked. Raises BudgetError where none comes near."""
    best = min(candidates, key=lambda sizes: abs(vocabulary_share(sizes, parts, limits) - split.vocabulary))
    got = vocabulary_share(best, parts, limits)
    if abs(got - split.vocabulary) > SHARE_TOLERANCE:
        raise BudgetError(
            f"--split {split.text}: not reachable here, the nearest is {100 * got:.0f}:{100 - 100 * got:.0f}",
            "move the split, or take --split auto",
        )
    return best


def removable_parameters(parts: Parts, limits: Limits) -> tuple[int, int]:
    """The most parameters that the vocabulary can lose, and that the FFN can."""
    smallest = Sizes(limits.smallest_vocab_size, min(limits.channel_grid, limits.intermediate_size))
    return _removed(smallest, parts, limits)


def removed_parameters(sizes: Sizes, parts: Parts, whole: Sizes | Limits) -> int:
    """Parameters that the pruned model lacks; `whole` has the unpruned model's sizes."""
    return sum(_removed(sizes, parts, whole))


def pruned_parts(sizes: Sizes, parts: Parts, whole: Sizes | Limits) -> Parts:
    """Where the parameters are after pruning to these sizes; `whole` has the unpruned model's."""
    vocabulary, ffn = _removed(sizes, parts, whole)
    return replace(
        parts,
        vocabulary=parts.vocabulary - vocabulary,
        ffn=parts.ffn - ffn,
        lm_head=parts.lm_head // whole.vocab_size * sizes.vocab_size,
        per_layer=parts.per_layer // whole.vocab_size * sizes.vocab_size,
    )


def _removed(sizes: Sizes, parts: Parts, whole: Sizes | Limits) -> tuple[int, int]:
    """What goes from the vocabulary, and what from the FFN."""
    rows = whole.vocab_size - sizes.vocab_size
    channels = whole.intermediate_size - sizes.intermediate_size
    return rows * parts.per_row, channels * parts.per_channel


def _default_inner(wanted: float, parts: Parts, limits: Limits) -> float:
    share = wanted / (VOCABULARY_WEIGHT * parts.vocabulary + parts.ffn)
    return limits.intermediate_size * (1.0 - share)


def inner_sizes(limits: Limits) -> list[int]:
    """Every I' that may be: the grid's, and the whole."""
    grid = limits.channel_grid
    return sorted({limits.intermediate_size, *range(grid, limits.intermediate_size + 1, grid)})


def _inner_candidates(ideal: float, limits: Limits) -> list[int]:
    """Values of I' on the grid, the one nearest to `ideal` first."""
    return sorted(inner_sizes(limits), key=lambda value: (abs(value - ideal), value))


def _complete(inner: int, wanted: float, parts: Parts, limits: Limits) -> Sizes:
    """The vocabulary size that, with I' = `inner`, comes nearest to what is wanted."""
    left = wanted - (limits.intermediate_size - inner) * parts.per_channel
    exact = limits.vocab_size - left / parts.per_row
    multiple = limits.vocab_multiple
    floor = -(-limits.smallest_vocab_size // multiple) * multiple
    ceiling = limits.vocab_size // multiple * multiple

    def error(size: int) -> float:
        return abs(size - exact) * parts.per_row / parts.total

    grid = vocabulary_grid(limits.vocab_size, limits.smallest_vocab_size, multiple=multiple)
    if grid:
        nearest = min(grid, key=error)
        if error(nearest) <= _GRID_TOLERANCE:
            return Sizes(nearest, inner)
    return Sizes(min(max(round(exact / multiple) * multiple, floor), ceiling), inner)
