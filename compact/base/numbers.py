"""Check numbers of a configuration that config.json and GGUF can both store."""

from __future__ import annotations

from typing import Any

from compact.base.errors import DamagedFileError

FLOAT32_MAX = 3.4028234663852886e38


def number(value: Any, key: str, where: str, *, positive: bool = False) -> float:
    """Return `value` unchanged if it is an int or float from 0 to the largest float32.

    Args:
        value: the value from the file.
        key: its name, for messages.
        where: the file's path, for messages.
        positive: also reject 0.

    Raises:
        DamagedFileError: the value is something else (text, a boolean, NaN, infinity, negative, too large).
    """
    fits = isinstance(value, (int, float)) and not isinstance(value, bool)
    # Compare without conversion: an int with 400 digits cannot become a float. Comparisons with NaN are false.
    if not fits or not 0 <= value <= FLOAT32_MAX or (positive and not value):
        shown = repr(value) if not isinstance(value, int) or abs(value) < 10**40 else "a number of more than 40 digits"
        raise DamagedFileError(
            f"{where}: {key} = {shown[:60]} is not a valid number", "correct the value, or download the file again"
        )
    result: float = value
    return result
