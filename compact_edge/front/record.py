"""The record of a search for the plan, `--json` and reports.

It has no timings, so that equal searches have equal records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from compact.search.loss_model import LossLaw, as_share
from compact.search.size_evaluator import TextScore, log_ratios, text_bytes
from compact_edge.front.candidates import Candidate, SearchLimits, pareto
from compact_edge.front.search import FrontSearch, Measured, n_params_of, objective

# The value of `kind` in the record of a search for sizes and type.
FRONT = "front"
# Largest number of points of the front in a record. Measured points are added to them.
_FRONT_POINTS = 40


def front_record(search: FrontSearch, best: Measured) -> dict[str, Any]:
    """Return the record of a finished search.

    Losses are shares of the unpruned float model's bits per byte: 0.03 for 3% more. They are means over the texts,
    corrected for rare tokens that the texts do not contain.
    """
    everything = search.everything
    measured = sorted(search.measured.values(), key=lambda one: (one.candidate.n_bytes, one.loss))
    return {
        "kind": FRONT,
        "limits": limits_as_dict(search.limits),
        "held_out_bytes": text_bytes(search.predictor.evaluator.texts),
        "unpruned": unpruned_as_dict(search),
        "model": {
            "vocabulary": _law(search.predictor.vocabulary_law),
            "ffn": _law(search.predictor.ffn_law),
            "body_error": round(search.type_losses.body, 4),
            "head_error": round(search.type_losses.head, 4),
            "types_measured": types_measured(search),
        },
        "types": [each.name for each in search.types],
        "candidates": len(everything),
        "measured": [measured_as_dict(search, one) for one in measured],
        "chosen": measured.index(best),
        "no_cut": _no_cut(search, everything),
        "front": front_points(search, everything),
    }


def unpruned_as_dict(search: FrontSearch) -> dict[str, Any]:
    """Return the sizes of the unpruned model and its scores as JSON values."""
    whole = search.predictor.whole
    return {
        "vocab_size": whole.vocab_size,
        "intermediate_size": whole.intermediate_size,
        "parameters": n_params_of(search, whole),
        "bits_per_byte": {n: round(s.bits_per_byte, 4) for n, s in search.predictor.unpruned.texts.items()},
    }


def types_measured(search: FrontSearch) -> dict[str, float]:
    """Return the losses of the types that were measured on the unpruned model, by name."""
    return {name: round(as_share(loss), 4) for name, loss in search.type_losses.measured.items()}


def front_points(search: FrontSearch, everything: Sequence[Candidate]) -> list[dict[str, Any]]:
    """Return the front of all candidates, smallest file first, with measured losses where there are some."""
    front = pareto(everything, search.loss_of)
    step = max(1, -(-len(front) // _FRONT_POINTS))
    chosen = [
        each for n, each in enumerate(front) if n % step == 0 or each.key in search.measured or n == len(front) - 1
    ]
    return [candidate_as_dict(search, each) for each in chosen]


def unpruned_points(search: FrontSearch, everything: Sequence[Candidate]) -> list[dict[str, Any]]:
    """Return the unpruned model in every type, smallest file first."""
    whole = search.predictor.whole
    found = sorted((each for each in everything if each.sizes == whole), key=lambda each: each.n_bytes)
    return [candidate_as_dict(search, each) for each in found]


def candidate_as_dict(search: FrontSearch, candidate: Candidate) -> dict[str, Any]:
    """Return a candidate as JSON values."""
    speed = None if search.limits.is_timed else candidate.characters_per_second
    return {
        "vocab_size": candidate.sizes.vocab_size,
        "intermediate_size": candidate.sizes.intermediate_size,
        "parameters": n_params_of(search, candidate.sizes),
        "type": candidate.type.name,
        "bytes": candidate.n_bytes,
        "memory_bytes": candidate.memory,
        "characters_per_second": None if speed is None else round(speed, 1),
        "tokens_per_second": None if speed is None else round(candidate.tokens_per_second or 0.0, 1),
        "predicted_loss": round(as_share(candidate.loss), 4),
        "loss": round(as_share(search.loss_of(candidate)), 4),
        "measured": candidate.key in search.measured,
    }


def measured_as_dict(search: FrontSearch, one: Measured) -> dict[str, Any]:
    """Return a measured candidate as JSON values."""
    return {
        **candidate_as_dict(search, one.candidate),
        **scores_as_dict(search, one.texts),
        "loss_on_texts": round(as_share(one.raw_loss), 4),
    }


def scores_as_dict(search: FrontSearch, texts: Mapping[str, TextScore]) -> dict[str, Any]:
    """Return the scores of a file, and the loss of its worst text, as JSON values."""
    worst = max(log_ratios(texts, search.predictor.unpruned.texts).values())
    return {
        "bits_per_byte": {name: round(score.bits_per_byte, 4) for name, score in texts.items()},
        "worst_text_loss": round(as_share(worst), 4),
    }


def _no_cut(search: FrontSearch, everything: Sequence[Candidate]) -> dict[str, Any] | None:
    """Return the best unpruned candidate within the limits, if there is one."""
    whole = search.predictor.whole
    kept = [each for each in everything if each.sizes == whole and search.meets_limits(each)]
    return candidate_as_dict(search, min(kept, key=lambda each: objective(search, each))) if kept else None


def limits_as_dict(limits: SearchLimits) -> dict[str, Any]:
    """Return the limits as JSON values."""
    values: dict[str, Any] = asdict(limits)
    if values.pop("is_timed"):
        del values["bandwidth"]
    return values


def _law(law: LossLaw) -> list[list[float]]:
    """Return the measured points of a law: extra tokens or energy lost, and the loss."""
    return [[round(x, 4), round(as_share(loss), 4)] for x, loss in law.points]
