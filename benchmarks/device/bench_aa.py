"""An artifact against itself (A/A test): does the bench find differences between two equal sides?

    python -m benchmarks.device.bench_aa --artifact FILE.gguf [--runs 20] [--pairs 6] [--engine llama-server]

Runs the whole bench several times with the same file on both sides. Exit code 1 if fewer than 90% of all intervals
contain 1, or if a median log ratio of decode or prefill is above 1%. Run it on an idle machine, because other work can
make the test fail too. Writes the table of docs/bench.md, together with the recorded result of `bench_agreement`.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import record, summary
from benchmarks.device.bench_agreement import write_checks
from compact_edge.bench.pipeline import bench
from compact_edge.bench.plan import BenchOptions
from compact_edge.cli.library_env import quiet_libraries
from compact_edge.terminal.console import Console

LEAST_SHARE = 0.9
LARGEST_LOG_RATIO = 0.01
PROMPTS = '{"name": "short", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}\n'
SPEEDS = ("prefill_tokens_per_s", "decode_tokens_per_s:depth-128")


def run(arguments: argparse.Namespace, prompts: Path, out: Path) -> Mapping[str, Any]:
    """Run the bench once, with the artifact on both sides. Returns report.json."""
    options = BenchOptions(
        artifact=arguments.artifact,
        baseline=arguments.artifact,
        device=arguments.device,
        out=out,
        force=True,
        engine=arguments.engine,
        threads=arguments.threads,
        context=512,
        repetitions=arguments.pairs,
        depths=(128, 256),
        n_tokens=32,
        prompts=prompts,
        command="python -m benchmarks.device.bench_aa",
    )
    return bench(options, Console()).document


def summarized(documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return, over all runs, the share of intervals that contain 1, and the median log ratio of each metric."""
    held: dict[str, list[bool]] = {}
    ratios: dict[str, list[float]] = {}
    for document in documents:
        for metric in document["metrics"]:
            ratio = metric["ratio"]
            if ratio is None:
                continue
            if ratio["low"] is not None:
                held.setdefault(metric["key"], []).append(ratio["low"] <= 1 <= ratio["high"])
            ratios.setdefault(metric["key"], []).append(math.log(ratio["median"]))
    every = [value for values in held.values() for value in values]
    return {
        "intervals": len(every),
        "share_that_holds_1": sum(every) / len(every),
        "share_by_metric": {key: sum(values) / len(values) for key, values in held.items()},
        "median_log_ratio": {key: statistics.median(ratios[key]) for key in ratios if key in held},
    }


def main() -> None:
    """Run, print, record and write the table; exit code 1 if the bench finds differences that do not exist."""
    parser = argparse.ArgumentParser(description=summary(__doc__))
    parser.add_argument("--artifact", type=Path, required=True, help="a GGUF file")
    parser.add_argument("--device", default="local", help="device of the bench")
    parser.add_argument("--engine", help="engine of the bench")
    parser.add_argument("--runs", type=int, default=20, help="runs of the whole bench")
    parser.add_argument("--pairs", type=int, default=6, help="pairs of each run")
    parser.add_argument("--threads", type=int, default=1, help="threads of each program")
    arguments = parser.parse_args()
    quiet_libraries()
    documents = []
    with tempfile.TemporaryDirectory() as scratch:
        prompts = Path(scratch) / "prompts.jsonl"
        prompts.write_text(PROMPTS, encoding="utf-8")
        for number in range(1, arguments.runs + 1):
            documents.append(run(arguments, prompts, Path(scratch) / "run"))
            print(f"run {number} of {arguments.runs}: {summarized(documents[-1:])['share_that_holds_1']:.0%} contain 1")
    result = summarized(documents)
    print(f"{result['intervals']} intervals, {result['share_that_holds_1']:.1%} contain 1")
    for key, share in result["share_by_metric"].items():
        print(f"{key:36} {share:6.0%}  median log ratio {result['median_log_ratio'][key]:+.4f}")
    record(
        "bench-aa",
        {
            "artifact": arguments.artifact.name,
            "engine": documents[0]["engine"]["name"],
            "runs": arguments.runs,
            "pairs": arguments.pairs,
            "threads": arguments.threads,
            **result,
        },
    )
    write_checks()
    speeds = [abs(result["median_log_ratio"][key]) for key in SPEEDS]
    sys.exit(result["share_that_holds_1"] < LEAST_SHARE or max(speeds) > LARGEST_LOG_RATIO)


if __name__ == "__main__":
    main()
