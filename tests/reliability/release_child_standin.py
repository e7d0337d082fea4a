"""A child of a release that only says when it began and ended: `... FILE NAME SECONDS EXIT_CODE`.

Like the real one it ends when the parent's end of its stdin is closed.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path


def _watch(log: Path, name: str) -> None:
    while os.read(0, 1024):
        pass
    with log.open("a", encoding="utf-8") as file:
        file.write(f"stopped {name}\n")
    os._exit(143)


def main(log: Path, name: str, seconds: float, code: int) -> None:
    """Write the lines, and on a code other than 0 an error as `compact-edge` writes it."""
    threading.Thread(target=_watch, args=(log, name), daemon=True).start()
    with log.open("a", encoding="utf-8") as file:
        file.write(f"began {name} {os.getpid()}\n")
    time.sleep(seconds)
    if code:
        sys.stderr.write(f"something else\nerror: {name} went wrong\nhint: look there\n")
    with log.open("a", encoding="utf-8") as file:
        file.write(f"ended {name}\n")
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))
