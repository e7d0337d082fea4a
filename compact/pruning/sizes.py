"""Compute the final sizes from the options of a plan, if no search is needed."""

from __future__ import annotations

from compact.base.errors import UsageError
from compact.pruning.budget import (
    DEFAULT_RATIO,
    Limits,
    Parts,
    Sizes,
    count_parts,
    explicit_sizes,
    pruned_parts,
    sizes_for_ratio,
)
from compact.pruning.budget_options import AUTO, check_budget, has_explicit_sizes, has_limits, parse_split
from compact.pruning.options import PruneOptions
from compact.pruning.ranking import Ranking
from compact.sources.model_source import ModelSource

# With a ratio instead of explicit sizes, the number of FFN channels is a multiple of this.
RATIO_GRID = 32


def limits_of(source: ModelSource, ranking: Ranking, options: PruneOptions) -> Limits:
    """Return the constraints on the final sizes."""
    explicit = has_explicit_sizes(options)
    return Limits(
        vocab_size=source.vocab_size,
        intermediate_size=source.intermediate_size,
        smallest_vocab_size=len(ranking.always),
        # A ratio allows some freedom, so choose sizes that all kernels handle well. Explicit sizes are not changed.
        channel_grid=options.channel_grid if explicit else max(options.channel_grid, RATIO_GRID),
        vocab_multiple=options.pad_vocab_to_multiple_of,
    )


def parts_at(source: ModelSource, sizes: Sizes) -> Parts:
    """Return the parameters by part after pruning to these sizes."""
    whole = Sizes(source.vocab_size, source.intermediate_size)
    return pruned_parts(sizes, count_parts(source.tensors, source.config), whole)


def sizes_of(source: ModelSource, ranking: Ranking, options: PruneOptions) -> Sizes:
    """Return the final sizes: the explicit ones, or those for the ratio (0.2 if no budget is given).

    Raises:
        BudgetError: the sizes or the ratio are not reachable.
        UsageError: two options exclude each other, or the options need a search (`compact.search.find`).
    """
    check_budget(options)
    limits = limits_of(source, ranking, options)
    if has_explicit_sizes(options):
        return explicit_sizes(_vocab_size(ranking, options), options.intermediate_size, limits)
    split = None if options.split is None else parse_split(options.split)
    if has_limits(options) or split == AUTO:
        raise UsageError("limits and --split auto: the sizes need a search", "call compact.decide.decide instead")
    ratio = DEFAULT_RATIO if options.ratio is None else options.ratio
    return sizes_for_ratio(ratio, count_parts(source.tensors, source.config), limits, split)


def _vocab_size(ranking: Ranking, options: PruneOptions) -> int | None:
    """Return the requested vocabulary size, or None. For a coverage, round its size up to the requested multiple."""
    if options.vocab_coverage is None:
        return options.vocab_size
    multiple = options.pad_vocab_to_multiple_of
    size = ranking.reach.size_covering(options.vocab_coverage)
    return min(-(-size // multiple), ranking.vocabulary.n_rows // multiple) * multiple
