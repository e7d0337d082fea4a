"""The default text on which a build measures bits per byte.

A text of another kind than the calibration shows better what pruning costs. A user's own text is the most informative;
`--eval-text` and `compact-edge eval` accept one.
"""

from __future__ import annotations

from compact.texts import stdlib_text
from compact.vocabulary.language_costs import SENTENCES

NAME = "stdlib-held-out"
_CHARACTERS = 16_000


def default_evaluation_text() -> str:
    """Return the built-in English sentence, and equal parts of prose and code from held-out standard library modules.

    No built-in calibration text contains these modules. The text differs between Python versions.
    """
    parts = [SENTENCES["English"]]
    for documents in (stdlib_text.prose("held_out"), stdlib_text.code("held_out")):
        size = 0
        for document in documents:
            parts.append(document[: _CHARACTERS // 2 - size])
            size += len(parts[-1])
            if size >= _CHARACTERS // 2:
                break
    return "\n\n".join(parts)
