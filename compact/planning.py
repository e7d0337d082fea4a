"""From a model and a budget to a plan: which tokens and which FFN channels stay."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from compact.budget import Sizes
from compact.cache import Cache
from compact.calibration import Calibration
from compact.calibration_choice import calibration_for
from compact.channel_scores import common_act2, reference_scores
from compact.checkpoint_names import TOKENIZER
from compact.errors import UsageError
from compact.importance import top_channels
from compact.methods import CALIBRATED, METHODS
from compact.plan import SCHEMA, PrunePlan
from compact.pretokenizers import pre_name
from compact.progress import SILENT, Progress
from compact.prune_options import REPAIR_TOKENS, PruneOptions
from compact.ranking import Ranking, rank_vocabulary
from compact.sizes import sizes_of
from compact.source import ModelSource
from compact.store import read_json_object
from compact.vocabulary import kept_ids


def make_plan(
    source: ModelSource,
    options: PruneOptions,
    cache: Cache,
    *,
    calibration: Calibration | None = None,
    ranking: Ranking | None = None,
    sizes: Sizes | None = None,
    progress: Progress = SILENT,
) -> PrunePlan:
    """Decide what stays.

    Args:
        source: the checked checkpoint.
        options: budget, ranking, calibration and method.
        cache: keeps the scores of a calibration pass, which serve every vocabulary size on the grid.
        calibration: drawn already, where the caller needs it too.
        ranking: of the vocabulary, where the caller has it; it takes seconds for a large one.
        sizes: the final sizes, where they were searched; None takes them from the options.
        progress: told of the calibration pass.
    """
    if options.method not in METHODS:
        raise UsageError(f"--method {options.method!r}: unknown", f"one of: {', '.join(METHODS)}")
    if options.repair_tokens not in REPAIR_TOKENS:
        raise UsageError(f"--repair-tokens {options.repair_tokens!r}: unknown", f"one of: {', '.join(REPAIR_TOKENS)}")
    pre = pre_name(read_json_object(source.directory / TOKENIZER))
    ranking = ranking or rank_vocabulary(source, options, cache, progress)
    sizes = sizes or sizes_of(source, ranking, options)
    floor = ranking.floor_at(sizes.vocab_size)
    kept = kept_ids(ranking.vocabulary, ranking.always, ranking.order, sizes.vocab_size)
    used: Calibration | None = None
    if sizes.intermediate_size == source.intermediate_size:
        channels = [list(range(source.intermediate_size * width)) for width in source.ffn_widths]
    else:
        if options.method in CALIBRATED:
            used = calibration or calibration_for(source, options, cache=cache, progress=progress)
            scores = common_act2(source, used, ranking, sizes, options, cache, progress)
        else:
            scores = reference_scores(source, options.method, options.seed)
        channels = top_channels(scores, sizes.intermediate_size, source.ffn_widths)
    asked = {
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
    }
    return PrunePlan(
        schema=SCHEMA,
        source_name=source.name,
        source_id=source.id,
        source_hashes=dict(source.hashes),
        options=asked,
        method=options.method,
        ranking=ranking.name,
        ranking_sha256=ranking.corpus_sha256,
        calibration=None if used is None else _describe(used),
        pre=pre,
        kept_token_ids=kept,
        kept_channels=channels,
    )


def _describe(calibration: Calibration) -> dict[str, Any]:
    return {
        "name": calibration.label,
        "sha256": calibration.sha256,
        "id": calibration.id,
        "n_tokens": calibration.n_tokens,
        "sources": [asdict(source) for source in calibration.sources],
        **calibration.options,
    }
