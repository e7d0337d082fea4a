"""The tables and the picture of `docs/languages.md`, from the recorded cells of `languages.py`."""

from __future__ import annotations


def write_page() -> None:
    """Write them."""
