"""The final sizes that the options of a plan mean, where nothing has to be searched for them."""

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
from compact.pruning.budget_options import AUTO, check_budget, has_explicit_sizes, parse_split
from compact.pruning.options import PruneOptions
from compact.pruning.ranking import Ranking
from compact.sources.model_source import ModelSource

# FFN channels are chosen in steps of this where a ratio, and no explicit size, is asked for.
RATIO_GRID = 32


def limits_of(source: ModelSource, ranking: Ranking, options: PruneOptions) -> Limits:
    """What the sizes may be."""
    explicit = has_explicit_sizes(options)
    return Limits(
        vocab_size=source.vocab_size,
        intermediate_size=source.intermediate_size,
        smallest_vocab_size=len(ranking.always),
        # A ratio is free to land on sizes that every kernel likes; explicit sizes are the user's.
        channel_grid=options.channel_grid if explicit else max(options.channel_grid, RATIO_GRID),
        vocab_multiple=options.pad_vocab_to_multiple_of,
    )


def parts_at(source: ModelSource, sizes: Sizes) -> Parts:
    """Where the parameters are after a cut to these sizes."""
    whole = Sizes(source.vocab_size, source.intermediate_size)
    return pruned_parts(sizes, count_parts(source.tensors, source.config), whole)


def sizes_of(source: ModelSource, ranking: Ranking, options: PruneOptions) -> Sizes:
    """The final sizes: explicit, or from the ratio (0.2 where nothing is asked).

    Raises:
        BudgetError: what `compact.pruning.budget` raises.
        UsageError: options that exclude each other, or sizes that only `compact.search.find` finds.
    """
    check_budget(options)
    limits = limits_of(source, ranking, options)
    if has_explicit_sizes(options):
        return explicit_sizes(_vocab_size(ranking, options), options.intermediate_size, limits)
    split = None if options.split is None else parse_split(options.split)
    if options.fit_bytes is not None or split == AUTO:
        raise UsageError("--fit and --split auto: the sizes have to be searched", "decide through compact.decide")
    ratio = DEFAULT_RATIO if options.ratio is None else options.ratio
    return sizes_for_ratio(ratio, count_parts(source.tensors, source.config), limits, split)


def _vocab_size(ranking: Ranking, options: PruneOptions) -> int | None:
    """The size that was asked for, itself or by its coverage: the next multiple that the user wants."""
    if options.vocab_coverage is None:
        return options.vocab_size
    multiple = options.pad_vocab_to_multiple_of
    size = ranking.reach.size_covering(options.vocab_coverage)
    return min(-(-size // multiple), ranking.vocabulary.n_rows // multiple) * multiple
