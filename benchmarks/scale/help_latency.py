"""The time of every `--help`, beside an interpreter that does nothing.

    python -m benchmarks.scale.help_latency [--runs 15] [--limit-ms 200]

Run it by hand, never as a timed test. The commands and the empty interpreter run in alternation, so that other work on
the machine affects all of them. The limit is on the median of the wall time. On a busy machine the wall time is mostly
waiting; the processor time beside it is not affected much. Exit code 1 if a median is above the limit or a command
fails.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

from benchmarks.common import ROOT, summary
from compact_edge.cli.main import COMMANDS

EMPTY = "(python -c pass)"


def seconds_of(arguments: list[str]) -> tuple[float, float]:
    """Run the interpreter with `arguments`. Returns wall and processor time; raises CalledProcessError on failure."""
    start, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    # Windows does not count the processor time of children; it shows as 0 there.
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - start, processor


def main() -> int:
    """Measure, print the table and return the exit code."""
    parser = argparse.ArgumentParser(description=summary(__doc__))
    parser.add_argument("--runs", type=int, default=15, help="runs of each command")
    parser.add_argument("--limit-ms", type=float, default=200.0, help="largest median that passes")
    options = parser.parse_args()

    lines = {EMPTY: ["-c", "pass"], "compact-edge --help": ["-m", "compact_edge", "--help"]}
    lines |= {f"compact-edge {name} --help": ["-m", "compact_edge", name, "--help"] for name in COMMANDS}
    bad = 0
    for label, arguments in list(lines.items()):
        # The first run reads the files from the disk and is not counted.
        try:
            seconds_of(arguments)
        except subprocess.CalledProcessError as error:
            print(f"{label}: exit code {error.returncode}")
            del lines[label]
            bad += 1
    times: dict[str, list[tuple[float, float]]] = {label: [] for label in lines}
    for _ in range(options.runs):
        for label, arguments in lines.items():
            times[label].append(seconds_of(arguments))

    print(f"{'command':<28} {'median ms':>10} {'least ms':>10} {'worst ms':>10} {'cpu ms':>8} {'x empty':>8}")
    empty = statistics.median(wall for wall, _ in times[EMPTY])
    for label, runs in times.items():
        walls = [wall for wall, _ in runs]
        median = statistics.median(walls)
        processor = statistics.median(processor for _, processor in runs)
        mark = ""
        if median * 1000 > options.limit_ms:
            bad += 1
            mark = f"  above {options.limit_ms:g} ms"
        figures = "".join(f" {1000 * value:>10.1f}" for value in (median, min(walls), max(walls)))
        print(f"{label:<28}{figures} {1000 * processor:>8.1f} {median / empty:>8.1f}{mark}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
