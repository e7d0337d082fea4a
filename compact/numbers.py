"""Numbers of a configuration, checked: what config.json and GGUF keys can both hold."""

from __future__ import annotations

from typing import Any

from compact.errors import DamagedFileError

FLOAT32_MAX = 3.4028234663852886e38


def number(value: Any, key: str, where: str, *, positive: bool = False) -> float:
    """An int or float that float32 can hold, as it is.

    Args:
        value: from the file.
        key: its name, for the message.
        where: the file's path, for the message.
        positive: 0 and less are refused; else less than 0 is.

    Raises:
        DamagedFileError: anything else (text, true, NaN, infinities, numbers beyond float32).
    """
    fits = isinstance(value, (int, float)) and not isinstance(value, bool)
    # Compared, not converted: an int of 400 digits is no float at all. NaN compares as false.
    if not fits or not 0 <= value <= FLOAT32_MAX or (positive and not value):
        shown = repr(value) if not isinstance(value, int) or abs(value) < 10**40 else "a number of more than 40 digits"
        raise DamagedFileError(f"{where}: {key} = {shown[:60]} is not a number that fits")
    result: float = value
    return result
