"""Make a plan from a model and a budget: decide which tokens and FFN channels stay."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from compact.base.errors import UsageError
from compact.calibration.calibration_set import Calibration
from compact.pruning.budget import Sizes
from compact.pruning.calibration_choice import calibration_for
from compact.pruning.context import Context
from compact.pruning.importance import top_channels
from compact.pruning.methods import method_named
from compact.pruning.options import REPAIR_TOKENS, PruneOptions
from compact.pruning.plan import SCHEMA, PrunePlan
from compact.pruning.ranking import rank_vocabulary
from compact.pruning.sizes import sizes_of
from compact.vocabulary.loading import tokenizer_document, tokenizer_note
from compact.vocabulary.pretokenizers import pre_name
from compact.vocabulary.vocabulary import kept_ids


def make_plan(context: Context, sizes: Sizes | None = None) -> PrunePlan:
    """Decide which tokens and which FFN channels stay.

    Args:
        context: the model and the options. The cache stores the scores of the calibration pass, so that other
            vocabulary sizes on the grid need no further pass.
        sizes: the final sizes, if a search found them. None computes them from the options.

    Raises:
        UsageError: the method is unknown, or two options exclude each other.
        CompactEdgeError: an error of ranking the vocabulary or drawing the calibration set.
    """
    source, options = context.source, context.options
    method = method_named(options.method)
    if options.repair_tokens not in REPAIR_TOKENS:
        raise UsageError(f"--repair-tokens {options.repair_tokens!r}: unknown", f"one of: {', '.join(REPAIR_TOKENS)}")
    if (note := tokenizer_note(source.directory)) is not None:
        context.progress.note(note)
    pre = source.pre or pre_name(tokenizer_document(source.directory))
    ranking = context.once(rank_vocabulary)
    sizes = sizes or sizes_of(source, ranking, options)
    floor = ranking.floor_at(sizes.vocab_size)
    kept = kept_ids(ranking.vocabulary, ranking.always, ranking.order, sizes.vocab_size)
    used: Calibration | None = None
    if sizes.intermediate_size == source.intermediate_size:
        channels = [list(range(source.intermediate_size * width)) for width in source.ffn_widths]
    else:
        if method.needs_calibration:
            used = context.once(calibration_for)
        scores = method.score(context, used, sizes.vocab_size)
        channels = top_channels(scores.at(sizes.vocab_size), sizes.intermediate_size, source.ffn_widths)
    requested = {
        "ratio": options.ratio,
        "vocab_size": options.vocab_size,
        "intermediate_size": options.intermediate_size,
        "fit_bytes": options.fit_bytes,
        "split": options.split,
        "channel_grid": options.channel_grid,
        "pad_vocab_to_multiple_of": options.pad_vocab_to_multiple_of,
        "vocab_floor": floor,
        "languages": list(ranking.languages),
        "scripts": list(ranking.scripts),
        "dtype": options.dtype,
        "seed": options.seed,
    } | _limits_of(options)
    return PrunePlan(
        schema=SCHEMA,
        source_name=source.name,
        source_id=source.id,
        source_hashes=dict(source.hashes),
        options=requested,
        method=options.method,
        ranking=ranking.name,
        ranking_sha256=ranking.corpus_sha256,
        calibration=None if used is None else _describe(used),
        pre=pre,
        kept_token_ids=kept,
        kept_channels=channels,
    )


def _limits_of(options: PruneOptions) -> dict[str, Any]:
    """Return the given limits besides `fit_bytes`. A limit that is not given has no key."""
    limits = {
        "max_memory_bytes": options.max_memory_bytes,
        "max_loss": options.max_loss,
        "min_speed": None if options.min_speed is None else asdict(options.min_speed),
    }
    return {name: value for name, value in limits.items() if value is not None}


def _describe(calibration: Calibration) -> dict[str, Any]:
    return {
        "name": calibration.label,
        "sha256": calibration.sha256,
        "id": calibration.id,
        "n_tokens": calibration.n_tokens,
        "sources": [asdict(source) for source in calibration.sources],
        **calibration.options,
    }
