"""Count a model's parameters by part, and compute the sizes that a budget allows.

By default, a ratio is split between vocabulary and FFN as follows. Both lose a share of their own parameters, and the
vocabulary's share is `VOCABULARY_WEIGHT` times the FFN's. Most parameters of a small model are in its vocabulary, so it
mostly loses vocabulary. A large model mostly loses FFN channels. COMPACT (arXiv 2509.06836) calls this scale-adaptive.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from compact.architectures.layout import EMBEDDINGS, OUTPUT, PER_LAYER_EMBEDDING, expected_shapes
from compact.architectures.table import family_of
from compact.base.errors import BudgetError
from compact.checkpoints.safetensors_file import TensorRef
from compact.pruning.importance import vocabulary_grid

DEFAULT_RATIO = 0.2
# The share of its parameters that the vocabulary loses, divided by the share that the FFN loses. The value was chosen
# with `benchmarks/quality/splits.py` on SmolLM2-135M; docs/quality.md has the table.
VOCABULARY_WEIGHT = 2.0
# Largest accepted difference from `--ratio`, as a share of all parameters.
TOLERANCE = 0.005
# Largest accepted difference from `--split V:I`, as a share of the removed parameters.
SHARE_TOLERANCE = 0.1
# Use the nearest vocabulary size on the score grid if its error is at most this share of all parameters. Beyond this,
# leave the grid, which costs another calibration pass.
_GRID_TOLERANCE = 0.0025


@dataclass(frozen=True)
class Parts:
    """Number of parameters in each part of a model.

    Attributes:
        vocabulary: embeddings and LM head. A tied head is counted once.
        attention, ffn, norms, other: the other parts.
        per_row: parameters per vocabulary entry.
        per_channel: parameters per unit of `intermediate_size`, summed over all layers.
        lm_head: the part of `vocabulary` that is an untied LM head.
        per_layer: the part of `vocabulary` that is a per-layer embedding (Gemma 4).
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
        """The number of parameters of the whole model."""
        return self.vocabulary + self.attention + self.ffn + self.norms + self.other

    @property
    def vocabulary_parts(self) -> dict[str, int]:
        """Parameters of the vocabulary by part. Models without a per-layer embedding have no entry for it."""
        per_layer = {"per_layer_embedding": self.per_layer} if self.per_layer else {}
        return {"embedding": self.embedding, **per_layer, "lm_head": self.lm_head}

    def as_dict(self) -> dict[str, int]:
        """Return the parts and their total as a JSON object."""
        return {
            "vocabulary": self.vocabulary,
            "attention": self.attention,
            "ffn": self.ffn,
            "norms": self.norms,
            "other": self.other,
            "total": self.total,
        }


def part_of(name: str) -> str:
    """Return the part that a tensor belongs to, given its name in the Hugging Face checkpoint."""
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
    """Count the parameters of a checkpoint by part. A tied LM head has no tensor, so it is not counted twice."""
    return _count({name: ref.n_elements for name, ref in tensors.items()}, config)


def count_config(config: Mapping[str, Any], where: str) -> Parts:
    """Count the parameters from a config.json. A checkpoint with this file gives the same result in `count_parts`.

    Args:
        config: content of config.json. The caller must check its sizes: positive integers, and a plausible number of
            layers.
        where: path of the file, for messages.

    Raises:
        UnsupportedArchitectureError, MixtureOfExpertsError: the family table has no row for this model.
    """
    # Usually, the number of tensors limits the number of layers. There are no tensors here, so the caller checks it.
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
    """Sizes of a pruned model: V' and I'."""

    vocab_size: int
    intermediate_size: int


@dataclass(frozen=True)
class Shares:
    """`--split V:I`: how the removed parameters are divided between vocabulary and FFN.

    Attributes:
        vocabulary: the vocabulary's share, 0 to 1.
        text: the option's value as the user wrote it, for messages.
    """

    vocabulary: float
    text: str


@dataclass(frozen=True)
class Limits:
    """Constraints on the sizes of the pruned model.

    Attributes:
        vocab_size, intermediate_size: sizes of the source, which are also the largest possible sizes.
        smallest_vocab_size: number of tokens that are always kept.
        channel_grid: `intermediate_size` must be a multiple of this, for the quantization.
        vocab_multiple: `vocab_size` must be a multiple of this, at the user's request.
    """

    vocab_size: int
    intermediate_size: int
    smallest_vocab_size: int
    channel_grid: int = 1
    vocab_multiple: int = 1


def explicit_sizes(vocab_size: int | None, intermediate_size: int | None, limits: Limits) -> Sizes:
    """Check the sizes that the user gave and return them. A size that is not given stays as large as possible.

    Raises:
        BudgetError: a size is out of range, or is not a multiple of its grid.
    """
    inner = limits.intermediate_size if intermediate_size is None else intermediate_size
    if not 1 <= inner <= limits.intermediate_size:
        raise BudgetError(f"--intermediate-size {inner}: this model accepts 1 to {limits.intermediate_size}")
    grid = limits.channel_grid
    if intermediate_size is not None and inner % grid:
        near = ", ".join(str(v) for v in (inner // grid * grid, (inner // grid + 1) * grid) if v)
        raise BudgetError(
            f"--intermediate-size {inner}: the quantization needs a multiple of {grid}",
            f"the nearest multiples are {near}",
        )
    if vocab_size is None:
        # Pruning never adds rows, so round the source's size down to a multiple.
        return Sizes(limits.vocab_size // limits.vocab_multiple * limits.vocab_multiple, inner)
    multiple = limits.vocab_multiple
    if vocab_size % multiple:
        near = f"{vocab_size // multiple * multiple} and {(vocab_size // multiple + 1) * multiple}"
        raise BudgetError(
            f"--vocab-size {vocab_size}: not a multiple of --pad-vocab-to-multiple-of {multiple}",
            f"the nearest multiples are {near}",
        )
    if not limits.smallest_vocab_size <= vocab_size <= limits.vocab_size:
        raise BudgetError(
            f"--vocab-size {vocab_size}: this model accepts {limits.smallest_vocab_size} to {limits.vocab_size}",
            "byte tokens, special tokens and tokens that you name are always kept",
        )
    return Sizes(vocab_size, inner)


def sizes_for_ratio(
    ratio: float, parts: Parts, limits: Limits, split: Shares | Literal["proportional"] | None = None
) -> Sizes:
    """Compute sizes that remove `ratio` of all parameters, to within 0.5 percentage points.

    Args:
        ratio: share of all parameters to remove, 0 < ratio < 1.
        parts: number of parameters in each part of the source.
        limits: ranges and grids of the sizes.
        split: how to divide the removed parameters between vocabulary and FFN. `proportional` and None use the fixed
            rule of this module.

    Raises:
        BudgetError: the ratio is out of range, vocabulary and FFN have too few parameters for it, or no sizes on the
            grids are near the ratio or the split.
    """
    wanted = wanted_parameters(ratio, parts, limits)
    if isinstance(split, Shares):
        _check_shares(split, ratio, parts, limits)
    ideal = _default_inner(wanted, parts, limits)
    candidates = [_complete(inner, wanted, parts, limits) for inner in _inner_candidates(ideal, limits)]
    reached = [
        (abs(removed_parameters(s, parts, limits) - wanted) / parts.total, n, s) for n, s in enumerate(candidates)
    ]
    near = [found for found in reached if found[0] <= TOLERANCE]
    if near and isinstance(split, Shares):
        return nearest_share(split, [sizes for _, _, sizes in near], parts, limits)
    error, _, sizes = near[0] if near else min(reached)
    if error > TOLERANCE:
        nearest = removed_parameters(sizes, parts, limits) / parts.total
        raise BudgetError(
            f"--ratio {ratio:g}: the nearest ratio on the size grids is {nearest:.3f}",
            "set --vocab-size and --intermediate-size instead",
        )
    return sizes


def wanted_parameters(ratio: float, parts: Parts, limits: Limits) -> float:
    """Return how many parameters a ratio removes. Raises BudgetError if vocabulary and FFN have too few of them."""
    if not 0.0 < ratio < 1.0:
        raise BudgetError(f"--ratio {ratio:g}: out of range", "give the share of parameters to remove, between 0 and 1")
    wanted = ratio * parts.total
    most = sum(removable_parameters(parts, limits))
    if wanted > most + TOLERANCE * parts.total:
        raise BudgetError(
            f"--ratio {ratio:g}: not reachable, because pruning removes at most {most / parts.total:.2f}",
            "choose a smaller --ratio",
        )
    return wanted


def _check_shares(split: Shares, ratio: float, parts: Parts, limits: Limits) -> None:
    rows, channels = removable_parameters(parts, limits)
    for name, share, most in (("vocabulary", split.vocabulary, rows), ("FFN", 1.0 - split.vocabulary, channels)):
        if share * ratio * parts.total > most + TOLERANCE * parts.total:
            raise BudgetError(
                f"--split {split.text}: the {name} can lose at most {most / parts.total:.3f} of all parameters, "
                f"but its share of --ratio {ratio:g} is {share * ratio:.3f}",
                "choose a smaller --ratio, or change the split",
            )


def vocabulary_share(sizes: Sizes, parts: Parts, limits: Limits) -> float:
    """Return the vocabulary's share of the parameters that these sizes remove, 0 to 1."""
    rows, channels = _removed(sizes, parts, limits)
    return rows / max(1, rows + channels)


def nearest_share(split: Shares, candidates: Sequence[Sizes], parts: Parts, limits: Limits) -> Sizes:
    """Return the candidate nearest to a split. Raises BudgetError if none is near enough."""
    best = min(candidates, key=lambda sizes: abs(vocabulary_share(sizes, parts, limits) - split.vocabulary))
    share = vocabulary_share(best, parts, limits)
    if abs(share - split.vocabulary) > SHARE_TOLERANCE:
        raise BudgetError(
            f"--split {split.text}: not reachable, the nearest split is {100 * share:.0f}:{100 - 100 * share:.0f}",
            "change the split, or use --split auto",
        )
    return best


def removable_parameters(parts: Parts, limits: Limits) -> tuple[int, int]:
    """Return how many parameters the vocabulary can lose at most, and how many the FFN can lose."""
    smallest = Sizes(limits.smallest_vocab_size, min(limits.channel_grid, limits.intermediate_size))
    return _removed(smallest, parts, limits)


def removed_parameters(sizes: Sizes, parts: Parts, whole: Sizes | Limits) -> int:
    """Return how many parameters pruning to `sizes` removes. `whole` has the sizes of the unpruned model."""
    return sum(_removed(sizes, parts, whole))


def pruned_parts(sizes: Sizes, parts: Parts, whole: Sizes | Limits) -> Parts:
    """Return the parameters by part after pruning to `sizes`. `whole` has the sizes of the unpruned model."""
    vocabulary, ffn = _removed(sizes, parts, whole)
    return replace(
        parts,
        vocabulary=parts.vocabulary - vocabulary,
        ffn=parts.ffn - ffn,
        lm_head=parts.lm_head // whole.vocab_size * sizes.vocab_size,
        per_layer=parts.per_layer // whole.vocab_size * sizes.vocab_size,
    )


def _removed(sizes: Sizes, parts: Parts, whole: Sizes | Limits) -> tuple[int, int]:
    """Return how many parameters are removed from the vocabulary, and how many from the FFN."""
    rows = whole.vocab_size - sizes.vocab_size
    channels = whole.intermediate_size - sizes.intermediate_size
    return rows * parts.per_row, channels * parts.per_channel


def _default_inner(wanted: float, parts: Parts, limits: Limits) -> float:
    share = wanted / (VOCABULARY_WEIGHT * parts.vocabulary + parts.ffn)
    return limits.intermediate_size * (1.0 - share)


def inner_sizes(limits: Limits) -> list[int]:
    """Return all possible I', ascending: the multiples of the grid, and the source's own size."""
    grid = limits.channel_grid
    return sorted({limits.intermediate_size, *range(grid, limits.intermediate_size + 1, grid)})


def _inner_candidates(ideal: float, limits: Limits) -> list[int]:
    """Return all possible I', sorted by their distance from `ideal`."""
    return sorted(inner_sizes(limits), key=lambda value: (abs(value - ideal), value))


def _complete(inner: int, wanted: float, parts: Parts, limits: Limits) -> Sizes:
    """Add the vocabulary size that, together with I' = `inner`, removes about `wanted` parameters."""
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
