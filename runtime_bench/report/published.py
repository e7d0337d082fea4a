"""Facts of device, engine and settings that may leave the machine, because reports are published in pull requests."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Paths on the user's machine; only facts.json has them.
_PRIVATE = frozenset({"path", "server", "bench", "files"})
_PATH = re.compile(r"""(?:^|[\s=,:"'(]|(?<!\w)-[A-Za-z])(?:~?/|[A-Za-z]:[\\/]|\\\\)[\w.~-]""")


def published(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts without names of files and without values that contain an absolute path, at any depth."""
    return {
        key: published(value) if isinstance(value, Mapping) else value
        for key, value in facts.items()
        if key not in _PRIVATE and not _names_path(value)
    }


def _names_path(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_names_path(item) for item in value)
    return isinstance(value, str) and _PATH.search(value) is not None
