"""Measures the front of all sizes and types: the files that no smaller one beats."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from compact.pruning.budget import Sizes
from compact.search.size_evaluator import text_bytes
from compact_edge.front.candidates import Candidate, pareto
from compact_edge.front.plot import LARGEST_LOSS
from compact_edge.front.record import (
    candidate_as_dict,
    front_points,
    measured_as_dict,
    types_measured,
    unpruned_as_dict,
    unpruned_points,
)
from compact_edge.front.search import FrontSearch

# Weight of a measurement of the same type, relative to another type.
_SAME_TYPE = 3.0
# Distance of logarithmic losses at which a measurement has half of its largest weight.
_DISTANCE = 0.1
# A correction is at most this share of the predicted loss. An error is a share of at least the noise of short texts.
_LARGEST_ERROR = 0.5
_NOISE = 0.005
# Losses that differ by less than this are equal.
_EQUAL = 0.0005


@dataclass
class CurveSearch(FrontSearch):
    """A search whose measurements correct the predictions of similar losses.

    The losses on a front differ by a factor of a hundred, and predictions of large losses have large errors. So the
    correction is relative to the loss, and near measurements count most. The unpruned model is corrected only by
    measurements of the unpruned model, and a pruned model only by those of pruned models.
    """

    def _correction(self, candidate: Candidate) -> float:
        whole = self.predictor.whole
        total = weights = 0.0
        for one in self.measured.values():
            known = one.candidate
            if (known.sizes == whole) != (candidate.sizes == whole) or known.loss <= 0 or candidate.loss <= 0:
                continue
            distance = abs(math.log(known.loss / candidate.loss))
            weight = (_SAME_TYPE if known.type.name == candidate.type.name else 1.0) / (_DISTANCE + distance)
            error = (one.loss - known.loss) / max(known.loss, _NOISE)
            total += weight * min(max(error, -_LARGEST_ERROR), _LARGEST_ERROR)
            weights += weight
        return candidate.loss * total / weights if weights else 0.0


def measure_front(opened: FrontSearch, points: int, minutes: float | None = None) -> CurveSearch:
    """Measure files along the front, evenly spaced in the logarithm of their size.

    Args:
        opened: from `compact_edge.front.choose.open_search`, without limits. Its trials must be open.
        points: number of files to measure. The unpruned model in the types that were measured for the prediction is
            added without further work.
        minutes: time limit for the measurements.

    Raises:
        CompactEdgeError: an error of making or scoring an artifact.
    """
    search = CurveSearch(**{each.name: getattr(opened, each.name) for each in fields(opened)})
    everything = search.everything
    whole = search.predictor.whole
    for each in everything:
        if each.sizes == whole and each.type.name in search.type_losses.measured:
            search.measure(each)  # its scores are in the cache
    started = time.monotonic()
    with search.context.progress.task("measuring artifacts", points, "files") as task:
        for number in range(points):
            if minutes and number and time.monotonic() - started > 60 * minutes:
                break
            chosen = _at(search, _useful_front(search, everything), (number + 0.5) / points)
            if chosen is None:
                break
            search.measure(chosen)
            task.advance()
    return search


def _useful_front(search: FrontSearch, everything: Sequence[Candidate]) -> list[Candidate]:
    """Return the front of the candidates that do not lose too much. If all do, return the whole front.

    A larger file is on the front only if its loss is smaller by more than the noise.
    """
    losses = {each.key: search.loss_of(each) for each in everything}
    useful = [each for each in everything if losses[each.key] <= math.log1p(LARGEST_LOSS)]
    return pareto(useful or everything, lambda each: round(max(0.0, losses[each.key]) / _EQUAL) * _EQUAL)


def _at(search: FrontSearch, front: Sequence[Candidate], place: float) -> Candidate | None:
    """Return the unmeasured candidate that is nearest to a place on the front, from 0 (smallest) to 1."""
    low, high = (math.log(front[end].n_bytes) for end in (0, -1))
    wanted = low + place * (high - low)
    left = [each for each in front if each.key not in search.measured]
    return min(left, key=lambda each: abs(math.log(each.n_bytes) - wanted), default=None)


def curve_record(search: CurveSearch) -> dict[str, Any]:
    """Return the front, the unpruned model in every type, and all measured files as JSON values.

    Losses are those of `compact_edge.front.record.front_record`. `speed` is the estimated number of characters/s
    divided by that of the unpruned model in the type `speed_reference`, from the bytes that are read per token.
    """
    everything = search.everything
    whole = search.predictor.whole
    reference = max(search.types, key=lambda each: each.sizes.bytes_per_token(whole))
    types = {each.name: each for each in search.types}
    slowest = reference.sizes.bytes_per_token(whole) / search.predictor.characters_per_token(whole.vocab_size)

    def complete(point: dict[str, Any]) -> dict[str, Any]:
        sizes = Sizes(point["vocab_size"], point["intermediate_size"])
        one = search.measured.get((sizes, point["type"]))
        n_bytes = types[point["type"]].sizes.bytes_per_token(sizes)
        speed = slowest * search.predictor.characters_per_token(sizes.vocab_size) / n_bytes
        return {
            **(point if one is None else measured_as_dict(search, one)),
            "speed": round(speed, 4),
        }

    useful = {each.key for each in _useful_front(search, everything)}
    front = [each for each in everything if each.key in useful]
    measured = sorted((one.candidate for one in search.measured.values()), key=lambda each: each.n_bytes)
    return {
        "held_out_bytes": text_bytes(search.predictor.evaluator.texts),
        "unpruned": unpruned_as_dict(search),
        "types_measured": types_measured(search),
        "types": [each.name for each in search.types],
        "candidates": len(everything),
        "speed_reference": reference.name,
        "front": [complete(point) for point in front_points(search, front)],
        "unpruned_types": [complete(point) for point in unpruned_points(search, everything)],
        "measured": [complete(candidate_as_dict(search, each)) for each in measured],
    }
