"""A native child that aborts as soon as it is asked something, as ggml does on a broken assertion."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    sys.stdin.buffer.read(1)
    print("GGML_ASSERT(false) failed", file=sys.stderr, flush=True)
    os.abort()
