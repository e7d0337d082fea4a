"""The calibration where the user names none, and what a calibration says of the languages of its users."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from compact.calibration import C4, STDLIB, STDLIB_PROSE
from compact.documents import read_documents
from compact.hub_dataset import names_hub_dataset, parse_dataset
from compact.scripts import LATIN, scripts_of
from compact.source import TINY, ModelSource

# English text: the built-in texts, and the paper's data set.
_ENGLISH = (STDLIB, STDLIB_PROSE)
_DOCUMENTS = 2000


def default_calibration(source: ModelSource) -> tuple[str, ...]:
    """`stdlib` (code and prose) for `tiny`, which was trained on such text; C4 for a model from the Hub, as in the
    paper; `stdlib-prose`, which needs no network, for every other model."""
    if source.origin == TINY:
        return (STDLIB,)
    return (C4,) if source.commit is not None else (STDLIB_PROSE,)


def calibration_scripts(names: Sequence[str]) -> frozenset[str] | None:
    """The scripts of calibration texts (ISO 15924 codes), read from the files among them.

    Args:
        names: files, built-in texts, Hub data sets or `self`.

    Returns:
        None where a text is not there before it is drawn: another Hub data set than the default's, or `self`.
    """
    found: set[str] = set()
    for name in names:
        if name in _ENGLISH or _is_english_c4(name):
            found.add(LATIN)
        elif Path(name).is_file():
            found |= scripts_of(islice(read_documents(Path(name)), _DOCUMENTS))
        else:
            return None
    return frozenset(found) or None


def _is_english_c4(name: str) -> bool:
    dataset = parse_dataset(name) if names_hub_dataset(name) else None
    return dataset is not None and dataset.repo == C4 and (dataset.config or "").startswith("en")
