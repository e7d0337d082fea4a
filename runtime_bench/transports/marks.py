"""Lines with the answers of a script on the device. Each begins with a random mark that no other output contains."""

from __future__ import annotations

import secrets


def new_mark() -> str:
    """Return a mark for one command: 64 random bits, so that no program prints it by chance."""
    return f"compact-edge-{secrets.token_hex(8)}"


def line_after(text: bytes, mark: str, skip: str | None = None) -> str | None:
    """Return the answer on the first whole line of `text` that begins with `mark`.

    Args:
        text: output so far; a last line without its line end is not read.
        mark: from `new_mark`.
        skip: an answer to pass over.

    Returns:
        The rest of that line; None as long as there is no such line.
    """
    start = f"{mark} ".encode()
    for line in text.split(b"\n")[:-1]:
        if line.startswith(start) and (answer := line[len(start) :].decode("utf-8", "replace").rstrip("\r")) != skip:
            return answer
    return None
