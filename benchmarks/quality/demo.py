"""A build of smollm2-135m as in `make demo`, recorded.

    python -m benchmarks.quality.demo

`tests/compact_edge/building/test_smollm2.py` compares the loss of `make demo` with it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import record, summary

COMMAND = ["build", "smollm2-135m", "--target", "gguf", "--quant", "Q8_0", "--force", "--no-cache", "--json"]


def main() -> None:
    """Run the demo's command without a cache and record its figures."""
    argparse.ArgumentParser(description=summary(__doc__)).parse_args()
    with tempfile.TemporaryDirectory() as work:
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "compact_edge", *COMMAND, "--out", str(Path(work) / "out")],
            check=True,
            stdout=subprocess.PIPE,
        )
        seconds = time.monotonic() - started
    result = json.loads(done.stdout)
    demo = result["formats"]["gguf"]
    before, after = demo["before"], demo["after"]
    rise = {kind: after["bits_per_byte"][kind] - before["bits_per_byte"][kind] for kind in ("checkpoint", "artifact")}
    print(json.dumps(result, indent=2))
    record(
        "demo",
        {
            "command": "compact-edge " + " ".join(COMMAND),
            "wall_seconds": round(seconds),
            "rise": {kind: round(value, 4) for kind, value in rise.items()},
            "before": before,
            "after": after,
        },
    )


if __name__ == "__main__":
    main()
