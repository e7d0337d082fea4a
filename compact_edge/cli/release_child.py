"""A cell in a process of its own (`python -m compact_edge.cli.release_child ARGUMENTS`).

The parent holds the other end of stdin: when it is gone, however it ended, this process ends too and removes what it
had half written.
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
