"""Split `--ratio` between vocabulary and FFN by the predicted loss (`compact.search.predictor`)."""

from __future__ import annotations

from typing import Any

from compact.base.errors import CalibrationError, UsageError
from compact.pruning.budget import Sizes, removed_parameters
from compact.pruning.context import Context
from compact.search.find import Curve, Found, SizeOf, size_as_dict, sizes_at_ratio
from compact.search.loss_model import as_share
from compact.search.predictor import Predictor
from compact.search.size_evaluator import text_bytes

# Losses are compared after rounding to this many decimals, so that rounding errors of a machine do not decide.
_DECIMALS = 4


def predicted_sizes(context: Context, curve: Curve, ratio: float, size_of: SizeOf | None = None) -> Found | None:
    """Return the sizes at a ratio with the smallest predicted loss.

    Returns None, with a note to the user, if nothing can be measured: the calibration text is too short, or the model
    does not fit in memory.

    Raises:
        BudgetError: the ratio is out of range or not reachable.
    """
    every = sizes_at_ratio(ratio, curve)
    # The smallest vocabulary has no merges, and GGUF needs some.
    candidates = [sizes for sizes in every if sizes.vocab_size > curve.limits.smallest_vocab_size] or every
    try:
        predictor = context.once(Predictor)
    except (CalibrationError, UsageError) as error:
        context.progress.note(f"--split proportional is used, because sizes cannot be measured: {error.message}")
        return None
    losses = {sizes: predictor.loss(sizes) for sizes in candidates}
    # A ratio is met to within half a percentage point. Compare the losses at equal numbers of removed parameters.
    wanted = ratio * curve.parts.total
    removed = {sizes: removed_parameters(sizes, curve.parts, curve.limits) for sizes in candidates}
    best = min(candidates, key=lambda sizes: round(losses[sizes] * wanted / removed[sizes], _DECIMALS))
    return Found(best, _record(predictor, curve, ratio, best, size_of))


def _record(predictor: Predictor, curve: Curve, ratio: float, best: Sizes, size_of: SizeOf | None) -> dict[str, Any]:
    """Return the record for the plan: what was measured, and what is predicted for the chosen sizes."""
    whole = predictor.whole
    texts = predictor.evaluator.texts
    return {
        "budget": {"ratio": ratio, "fit_bytes": None},
        "held_out_bytes": text_bytes(texts),
        "unpruned": {
            **size_as_dict(whole, curve.parts.total, None if size_of is None else size_of(whole)),
            "bits_per_byte": {n: round(s.bits_per_byte, 4) for n, s in predictor.unpruned.texts.items()},
        },
        "predicted": {
            **size_as_dict(best, curve.parts.total - removed_parameters(best, curve.parts, curve.limits), None),
            "vocabulary_share": round(curve.share(best), 4),
            "loss": round(as_share(predictor.loss(best)), 4),
            "loss_of_vocabulary_alone": _alone(predictor, Sizes(best.vocab_size, whole.intermediate_size)),
            "loss_of_ffn_alone": _alone(predictor, Sizes(whole.vocab_size, best.intermediate_size)),
        },
        "measured": [
            {
                "vocab_size": probe.sizes.vocab_size,
                "intermediate_size": probe.sizes.intermediate_size,
                "extra_tokens": round(probe.extra_tokens, 4),
                "energy_lost": round(probe.energy_lost, 4),
                "loss": round(as_share(probe.loss), 4),
            }
            for probe in predictor.probes
        ],
    }


def _alone(predictor: Predictor, sizes: Sizes) -> float:
    return round(as_share(predictor.loss(sizes)), 4)
