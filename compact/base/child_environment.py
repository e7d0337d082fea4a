"""The environment of child processes that run a module of this project."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def module_environment() -> dict[str, str]:
    """Return this process's environment with its module path. The child finds modules where this process does."""
    environment = dict(os.environ)
    root = str(Path(__file__).resolve().parents[2])  # a clone need not be installed
    paths = [path for path in sys.path if path]
    environment["PYTHONPATH"] = os.pathsep.join(paths if root in paths else [*paths, root])
    return environment
