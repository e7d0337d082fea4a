"""The text that a build's bits per byte are measured on where the user names none.

Text of another kind than the calibration shows what pruning costs; a user's own text says more, and `--eval-text` and
`compact-edge eval` take it.
"""

from __future__ import annotations

from compact import stdlib_text
from compact.languages import SENTENCES

NAME = "stdlib-held-out"
_CHARACTERS = 16_000


def default_evaluation_text() -> str:
    """Half prose and half code of the standard library's held-out modules, and the built-in English sentence.

    No calibration set holds any of these modules. The text differs between Python versions.
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
