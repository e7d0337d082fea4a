"""Where a file that was not searched is, compared with the predicted front of all sizes and types."""

from __future__ import annotations

from dataclasses import dataclass

from compact.pruning.budget import Sizes
from compact.pruning.context import Context
from compact.pruning.ranking import rank_vocabulary
from compact.search.find import curve_of
from compact.search.loss_model import as_share
from compact.search.predictor import Predictor
from compact_edge.front.candidates import Candidate, SearchLimits, StoredType, candidates_of, resolve_recipe
from exporters.base import Format
from exporters.format_values import Choices, Recipe, Request, SizeRequest

# With a smaller error of the type, the measured loss of the type is within the noise and says nothing of other types.
_LEAST_ERROR = 0.002
# Predicted losses that differ by less are equal.
_CLOSE = 0.002


@dataclass(frozen=True)
class Built:
    """A file of a build.

    Attributes:
        format: its format and type.
        sizes: V' and I'.
        n_bytes: size of the file.
        type_loss: ln(bits per byte / float) of the unpruned model in this type, measured.
    """

    format: Format
    sizes: Sizes
    n_bytes: int
    type_loss: float


def place_of(built: Built, context: Context, original: Request, choices: Choices, names: tuple[str, str]) -> str | None:
    """Return a sentence that compares a file with the best one of its size, or None if nothing can be predicted.

    Sizes are predicted by the predictor that chose the sizes of the build, so nothing is measured again. The losses of
    other types follow from the loss of this type and the errors of all types.

    Args:
        built: the file.
        context: the model and the options of the build.
        original: the request for the unpruned model's artifact.
        choices: the user's choices for the format.
        names: name and longest description of the pruned artifact.
    """
    own = built.format.own_recipe
    if own is None:
        return None
    kind, target = type(built.format), built.format.target
    recipes = kind.measured_recipes(target, original, choices, context.cache, context.progress, also=[own])
    error = _error(recipes[0])
    if error is None or error < _LEAST_ERROR:
        return None
    per_error = max(0.0, built.type_loss) / error
    request = SizeRequest(context.source, context.once(rank_vocabulary), *names)
    types = []
    for each in recipes[1:]:
        found = resolve_recipe(kind, target, context.source, choices, each)
        types.append(StoredType(found, found.format.sizes(request), per_error * (_error(each) or 0.0)))
    predictor = context.once(Predictor)
    curve = curve_of(context.source, context.once(rank_vocabulary), context.options)
    smaller = [c for c in candidates_of(types, curve, predictor, SearchLimits()) if c.n_bytes <= built.n_bytes]
    mine = predictor.loss(built.sizes) + built.type_loss
    best = min(smaller, key=lambda each: each.loss, default=None)
    if best is None or mine - best.loss < _CLOSE:
        return "on the front: no file of this size is predicted to lose less"
    return _worse(best, mine, predictor.whole)


def _error(recipe: Recipe) -> float | None:
    """Return the sum of a recipe's errors, or None if they are not known."""
    if recipe.body_error is None or recipe.head_error is None:
        return None
    return recipe.body_error + recipe.head_error


def _worse(best: Candidate, mine: float, whole: Sizes) -> str:
    sizes = best.sizes
    cut = f"vocab_size {sizes.vocab_size}, intermediate_size {sizes.intermediate_size}"
    return (
        f"{as_share(mine - best.loss):.1%} more loss than the best file of this size is predicted to have: "
        f"{best.type.name}, {'no cut' if sizes == whole else cut}, {best.n_bytes / 1e6:.1f} MB"
    )
