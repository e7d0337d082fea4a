"""The default calibration, and the scripts that a calibration text is written in."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from compact.calibration.calibration_set import C4, STDLIB, STDLIB_PROSE
from compact.calibration.hub_dataset import names_hub_dataset, parse_dataset
from compact.sources.model_source import TINY, ModelSource
from compact.texts.documents import read_documents
from compact.vocabulary.scripts import LATIN, scripts_of

# English text: the built-in texts, and the paper's data set.
_ENGLISH = (STDLIB, STDLIB_PROSE)
_DOCUMENTS = 2000


def default_calibration(source: ModelSource) -> tuple[str, ...]:
    """Return the names of the calibration texts to use when the user names none.

    `tiny` gets `stdlib` (code and prose), because it was trained on such text. A model from the Hub gets C4, as in the
    paper. Every other model gets `stdlib-prose`, which needs no network.
    """
    if source.origin == TINY:
        return (STDLIB,)
    return (C4,) if source.commit is not None else (STDLIB_PROSE,)


def calibration_scripts(names: Sequence[str]) -> frozenset[str] | None:
    """Return the scripts that calibration texts are written in.

    Args:
        names: files, built-in texts, Hub data sets or `self`.

    Returns:
        ISO 15924 codes. None if a text does not exist before it is drawn (`self`, or a Hub data set other than English
        C4), or if the texts contain no letters.
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
