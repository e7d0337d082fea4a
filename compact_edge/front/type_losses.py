"""What quantization to a type costs: fitted to a few types that are measured on the unpruned model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from compact.base.progress import Progress
from compact.search.predictor import Predictor
from compact.search.size_evaluator import log_ratios
from compact_edge.front.candidates import SearchType
from compact_edge.front.trials import Trials

# Types that are measured if their errors are known.
PROBES = 3


@dataclass(frozen=True)
class TypeLosses:
    """Predicts ln(bits per byte / float) of a type on the unpruned model.

    The loss is linear in the mean relative errors of the body and of embedding and head.

    Attributes:
        body, head: loss per relative error.
        measured: measured losses, by the name of the type.
    """

    body: float
    head: float
    measured: Mapping[str, float]

    def at(self, search_type: SearchType) -> float:
        """Return the measured loss of a type if there is one, otherwise the predicted loss."""
        if search_type.name in self.measured:
            return self.measured[search_type.name]
        return self.body * (search_type.body_error or 0.0) + self.head * (search_type.head_error or 0.0)


def fit_type_losses(
    types: Sequence[SearchType], trials: Trials, predictor: Predictor, progress: Progress
) -> TypeLosses:
    """Measure some types on the unpruned model, and fit the losses of all types.

    If the errors of the types are not known, every type is measured.
    """
    chosen = probed(types)
    losses: dict[str, float] = {}
    before = predictor.unpruned.texts
    with progress.task("measuring types", len(chosen), "types") as task:
        for each in chosen:
            texts = trials.score(predictor.whole, each.format)
            losses[each.name] = fmean(log_ratios(texts, before).values())
            task.advance()
    return fitted(types, losses)


def probed(types: Sequence[SearchType]) -> list[SearchType]:
    """Return the types to measure: one with a medium and one with a large error of the body, one of the head."""
    known = [each for each in types if each.body_error is not None]
    if len(known) < len(types):
        return list(types)
    if not known:
        return []
    heads = [each.head_error or 0.0 for each in known]
    exact_head = min(heads) + (max(heads) - min(heads)) / 10
    plain = [each for each in known if (each.head_error or 0.0) <= exact_head]
    largest = max(each.body_error or 0.0 for each in plain)
    medium = min(plain, key=lambda each: abs((each.body_error or 0.0) - largest / 3))
    worst = max(plain, key=lambda each: each.body_error or 0.0)
    # Of the types with nearly exact bodies, the one with the largest error of the head.
    exact_body = min(each.body_error or 0.0 for each in known) + largest / 50
    head = max(
        (each for each in known if (each.body_error or 0.0) <= exact_body), key=lambda each: each.head_error or 0.0
    )
    return list({each.name: each for each in (medium, worst, head)}.values())


def fitted(types: Sequence[SearchType], losses: Mapping[str, float]) -> TypeLosses:
    """Fit the two coefficients to measured losses. Neither is negative."""
    by_name = {each.name: each for each in types}
    rows = [
        (by_name[name].body_error or 0.0, by_name[name].head_error or 0.0, loss)
        for name, loss in losses.items()
        if name in by_name and by_name[name].body_error is not None
    ]
    # The errors of body and head are independent, so least squares in turn converge at once.
    least = min((head for _, head, _ in rows), default=0.0)
    most = max((head for _, head, _ in rows), default=0.0)
    body = _slope([(x, loss) for x, head, loss in rows if head <= least + (most - least) / 10])
    head = _slope([(head, loss - body * x) for x, head, loss in rows])
    return TypeLosses(body, head, dict(losses))


def _slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the slope of a line through the origin by least squares, or 0 if it would be negative."""
    total = sum(x * x for x, _ in points)
    return max(0.0, sum(x * y for x, y in points) / total) if total > 0 else 0.0
