"""Makes a cell of a release in a separate process (`python -m compact_edge.cli.release_child ARGUMENTS`).

The parent has the other end of stdin open. When the parent ends for any reason, this process ends too and removes its
incomplete files.
"""

from __future__ import annotations

import os
import signal
import threading


def _end_with_the_parent() -> None:
    # Not `sys.stdin`: its lock would be held when the interpreter ends, which aborts it.
    while os.read(0, 1 << 16):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    from compact_edge.cli.main import main

    main()
