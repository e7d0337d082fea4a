"""What training recovers at one point of the front (`curve --recover`)."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean
from typing import Any

from compact.decide import decide, pruned_checkpoint
from compact.pruning.context import Context
from compact.pruning.recover_options import RecoverOptions
from compact.search.loss_model import as_share
from compact.search.size_evaluator import log_ratios
from compact_edge.front.curve import CurveSearch
from compact_edge.front.record import candidate_as_dict, scores_as_dict
from compact_edge.front.search import Measured

# Training starts from the measured cut with the largest loss up to this share: the one with most to recover.
LARGEST_LOSS = 0.3


def point_to_recover(search: CurveSearch) -> Measured | None:
    """Return the measured cut that training starts from, or None if no cut was measured."""
    cuts = [one for one in search.measured.values() if one.candidate.sizes != search.predictor.whole]
    useful = [one for one in cuts if one.loss <= math.log1p(LARGEST_LOSS)]
    return max(useful, key=lambda one: one.loss) if useful else min(cuts, key=lambda one: one.loss, default=None)


def recover_point(search: CurveSearch, context: Context, recover: RecoverOptions) -> dict[str, Any] | None:
    """Train the model of one point, and measure its file in the point's type.

    Args:
        search: a finished curve. Its trials must be open.
        context: the model and the options, without training.
        recover: how to train.

    Returns:
        The point as JSON values, with the losses before and after training. None if no cut was measured.

    Raises:
        CompactEdgeError: training failed.
    """
    one = point_to_recover(search)
    if one is None:
        return None
    sizes, kind = one.candidate.sizes, one.candidate.type.search_type.format
    options = replace(
        context.options,
        vocab_size=sizes.vocab_size,
        intermediate_size=sizes.intermediate_size,
        channel_grid=kind.channel_grid,
        recover=recover,
    )
    trained = context.with_options(options)
    decision = decide(trained)
    checkpoint, key = pruned_checkpoint(context.source, decision, context.cache, progress=context.progress)
    texts = search.trials.score_checkpoint(checkpoint, key, decision.plan, kind)
    raw = fmean(log_ratios(texts, search.predictor.unpruned.texts).values())
    return {
        **candidate_as_dict(search, one.candidate),
        **scores_as_dict(search, texts),
        "loss_before": round(as_share(one.loss), 4),
        # What training recovers on the texts is subtracted. The correction for other text stays.
        "loss": round(as_share(one.loss - one.raw_loss + raw), 4),
        "measured": True,
    }
