"""The bench's speeds beside those of llama-bench, for the same file, threads and machine.

    python -m benchmarks.device.bench_agreement --artifact FILE.gguf [--rounds 11] [--threads 1] [--engine-dir DIR]
    python -m benchmarks.device.bench_agreement --table      # write the table of docs/bench.md from recorded results

Each round runs llama-server as the bench does (a text of 512 tokens, then 128 new tokens after a short prompt) and
then llama-bench (`-p 512 -n 128`). llama-bench uses random token ids, so only prefill and decode tokens per second can
be compared. Exit code 1 if the medians differ by more than 5%. Needs the engine of `compact-edge engine build`.

The table of docs/bench.md has this result and that of `bench_aa`.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import cache, record, recorded, summary, table, write_table
from compact.base.files import sha256_file
from runtime_bench.bench_artifact import read_artifact
from runtime_bench.device.facts import read_facts
from runtime_bench.engines.base import PlacedArtifact, Settings
from runtime_bench.engines.llama_server import LlamaServer
from runtime_bench.measuring.measure import text_of_tokens
from runtime_bench.measuring.prompts import read_prompts, reference_text
from runtime_bench.report.published import published
from runtime_bench.toolchain.engine_folder import find_engine, read_engine_dir
from runtime_bench.transports.registry import open_transport

SCRIPT = "device.bench_agreement"
PROMPT, NEW, CONTEXT = 512, 128, 1024
LIMIT = 0.05


def ours(engine: LlamaServer, artifact: Path, threads: int) -> tuple[float, float]:
    """Prefill and decode tokens per second, measured by the bench's client on a new server process."""
    source = reference_text(read_prompts())
    model = PlacedArtifact(str(artifact.parent), read_artifact(artifact))
    with engine.open(model, Settings(threads, CONTEXT)) as session:
        session.warm_up()
        prefill = session.generate("prefill", text_of_tokens(session, source, PROMPT), 2)
        decode = session.generate("decode", "Once", NEW + 1)
    times = decode.token_s
    return prefill.prompt_tokens / prefill.prompt_s, (len(times) - 1) / (times[-1] - times[0])


def theirs(program: Path, artifact: Path, threads: int) -> tuple[float, float]:
    """Prefill and decode tokens per second by llama-bench, with llama-server's settings."""
    words = [str(program), "-m", str(artifact), "-p", str(PROMPT), "-n", str(NEW), "-t", str(threads), "-r", "1"]
    done = subprocess.run([*words, "-fa", "1", "-ngl", "0", "-o", "json"], capture_output=True, check=True, text=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    found = {bool(row["n_prompt"]): float(row["avg_ts"]) for row in rows}
    return found[True], found[False]


def show() -> str:
    """The table of docs/bench.md: the artifact against itself, and the agreement with llama-bench."""
    aa, agreement = recorded("bench-aa"), recorded("bench-agreement")
    ratios = aa["median_log_ratio"]
    rows = [
        [
            f"{aa['artifact']} against itself, {aa['runs']} runs of {aa['pairs']} pairs ({aa['engine']})",
            f"{aa['share_that_holds_1']:.1%} of {aa['intervals']} intervals contain 1",
        ],
        ["median log ratio of prefill", f"{ratios['prefill_tokens_per_s']:+.4f}"],
        ["median log ratio of decode at depth 128", f"{ratios['decode_tokens_per_s:depth-128']:+.4f}"],
    ]
    medians = agreement["medians_tokens_per_s"]
    for what in ("prefill", "decode"):
        pair = f"{medians['bench'][what]:.1f} / {medians['llama-bench'][what]:.1f} tokens/s"
        rows.append(
            [f"{what}, bench / llama-bench, {agreement['rounds']} rounds", f"{pair}, {agreement['ratio'][what]:.3f}"]
        )
    return table(("check", "result"), rows)


def write_checks() -> None:
    """Write the table into docs/bench.md."""
    write_table("bench.md", SCRIPT, show())


def main() -> None:
    """Run, print, record and write the table; exit code 1 if the medians differ by more than 5%."""
    parser = argparse.ArgumentParser(description=summary(__doc__))
    parser.add_argument("--artifact", type=Path, help="a GGUF file")
    parser.add_argument("--engine-dir", type=Path, help="folder of llama.cpp's programs")
    parser.add_argument("--rounds", type=int, default=11, help="rounds of both programs")
    parser.add_argument("--threads", type=int, default=1, help="threads of each program")
    parser.add_argument("--table", action="store_true", help="only write the table from recorded results")
    arguments = parser.parse_args()
    if arguments.table:
        write_checks()
        return
    if arguments.artifact is None:
        parser.error("--artifact is needed")
    artifact = arguments.artifact.absolute()
    rows: dict[str, list[tuple[float, float]]] = {"bench": [], "llama-bench": []}
    with open_transport("local") as transport:
        facts = read_facts(transport)
        architecture = facts.machine or platform.machine()
        folder = (
            find_engine(cache(), architecture, facts.isa_features)
            if arguments.engine_dir is None
            else read_engine_dir(arguments.engine_dir, architecture=architecture)
        )
        if folder is None or folder.bench is None:
            sys.exit("error: no llama-server and llama-bench for this machine\nhint: run: compact-edge engine build")
        engine = LlamaServer(transport, folder)
        for number in range(arguments.rounds):
            rows["bench"].append(ours(engine, artifact, arguments.threads))
            rows["llama-bench"].append(theirs(folder.bench, artifact, arguments.threads))
            print(f"round {number + 1}: " + ", ".join(f"{k} {v[-1][0]:.1f} {v[-1][1]:.2f}" for k, v in rows.items()))
    medians = {name: [statistics.median(column) for column in zip(*found, strict=True)] for name, found in rows.items()}
    ratios = [a / b for a, b in zip(medians["bench"], medians["llama-bench"], strict=True)]
    for what, index in (("prefill", 0), ("decode", 1)):
        a, b = medians["bench"][index], medians["llama-bench"][index]
        print(f"{what}: bench {a:.2f}, llama-bench {b:.2f} tokens/s, ratio {ratios[index]:.3f}")
    record(
        "bench-agreement",
        {
            "artifact": artifact.name,
            "sha256": sha256_file(artifact),
            "engine": published(folder.as_dict()),
            "threads": arguments.threads,
            "rounds": arguments.rounds,
            "medians_tokens_per_s": {
                name: {"prefill": found[0], "decode": found[1]} for name, found in medians.items()
            },
            "ratio": {"prefill": ratios[0], "decode": ratios[1]},
        },
    )
    write_checks()
    sys.exit(max(abs(ratio - 1) for ratio in ratios) > LIMIT)


if __name__ == "__main__":
    main()
