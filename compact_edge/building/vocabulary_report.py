"""Reports the languages that a pruned vocabulary keeps and the cost of other languages, as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from compact.pruning.ranking import CORPUS, LANGUAGES, SCRIPTS
from compact.vocabulary.language_costs import CODES, LanguageCost

if TYPE_CHECKING:
    from compact.pruning.plan import PrunePlan

# A language counts as kept if its number of tokens grows at most by this factor.
KEPT_RATIO = 1.05
_BY = {
    SCRIPTS: "scripts of the calibration text, then merge order",
    LANGUAGES: "use in the languages",
    CORPUS: "use in a corpus, for half of the tokens",
}


def how_ranked(plan: PrunePlan) -> str:
    """Return a short description of the ranking for a model card."""
    languages = plan.options.get("languages")
    words = _BY.get(plan.ranking, "merge order")
    return f"{words} ({', '.join(languages)})" if languages else words


def lines(plan: PrunePlan, costs: Sequence[LanguageCost]) -> list[str]:
    """Return lines on kept languages, costly languages, and how to change that. Empty if no token count changed."""
    if all(cost.before == cost.after for cost in costs):
        return []
    requested = list(plan.options.get("languages") or ())
    kept = [cost.language for cost in costs if cost.ratio <= KEPT_RATIO]
    if requested:
        found = [f"vocabulary kept for: {', '.join(requested)} (--languages)"]
    else:
        names = ", ".join(_name(language) for language in kept) or "none of the languages measured"
        found = [f"vocabulary kept for: {names} (by {how_ranked(plan)})"]
    costly = [cost for cost in costs if cost.ratio > KEPT_RATIO]
    if costly:
        listed = ", ".join(f"{_name(cost.language)} {cost.ratio:.1f}x" for cost in costly)
        found.append(f"these need more tokens: {listed}")
        own = requested or [CODES[name] for name in kept]
        # A requested language that is still costly needs a larger vocabulary instead.
        other = next((cost.language for cost in costly if CODES[cost.language] not in own), None)
        if other is not None:
            found.append(f"to keep {_name(other)}: --languages {','.join([*own, CODES[other]])}")
    return found


def _name(language: str) -> str:
    """Return the name of a language within a sentence."""
    return "code" if language == "Code" else language


def as_json(plan: PrunePlan) -> dict[str, Any]:
    """Return the fields for `--json`."""
    return {
        "vocabulary": {
            "ranking": plan.ranking,
            "languages": plan.options.get("languages") or [],
            "scripts": plan.options.get("scripts") or [],
        }
    }
