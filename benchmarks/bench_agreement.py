"""The bench's speeds beside llama-bench's, on the same file, threads and machine.

    python benchmarks/bench_agreement.py --artifact FILE.gguf [--rounds 11] [--threads 1] [--engine-dir DIR]

Each round runs llama-server as the bench does (a text of 512 tokens, then 128 new tokens behind a short prompt) and
llama-bench (`-p 512 -n 128`), one after the other. llama-bench feeds random ids and says nothing of text; only prefill
and decode tokens per second can be compared. The medians must agree within 5%. Needs the engine of `compact-edge engine
build`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import cache, record

from compact.store import sha256_file
from runtime_bench.bench_artifact import read_artifact
from runtime_bench.device_facts import read_facts
from runtime_bench.engine_folder import find_engine, read_engine_dir
from runtime_bench.engines.base import PlacedArtifact, Settings
from runtime_bench.engines.llama_server import LlamaServer
from runtime_bench.measure import text_of_tokens
from runtime_bench.prompts import read_prompts, reference_text
from runtime_bench.report.published import published
from runtime_bench.transports.registry import open_transport

PROMPT, NEW, CONTEXT = 512, 128, 1024
LIMIT = 0.05


def ours(engine: LlamaServer, artifact: Path, threads: int) -> tuple[float, float]:
    """Prefill and decode tokens per second by the bench's own client, in a fresh process."""
    source = reference_text(read_prompts())
    model = PlacedArtifact(str(artifact.parent), read_artifact(artifact))
    with engine.open(model, Settings(threads, CONTEXT)) as session:
        session.warm_up()
        prefill = session.generate("prefill", text_of_tokens(session, source, PROMPT), 2)
        decode = session.generate("decode", "Once", NEW + 1)
    times = decode.token_s
    return prefill.prompt_tokens / prefill.prompt_s, (len(times) - 1) / (times[-1] - times[0])


def theirs(program: Path, artifact: Path, threads: int) -> tuple[float, float]:
    """The same of llama-bench, with llama-server's settings."""
    words = [str(program), "-m", str(artifact), "-p", str(PROMPT), "-n", str(NEW), "-t", str(threads), "-r", "1"]
    done = subprocess.run([*words, "-fa", "1", "-ngl", "0", "-o", "json"], capture_output=True, check=True, text=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    found = {bool(row["n_prompt"]): float(row["avg_ts"]) for row in rows}
    return found[True], found[False]


def main() -> None:
    """Run, print, record; exit code 1 where they differ by more than 5%."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--engine-dir", type=Path)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    artifact = arguments.artifact.absolute()
    rows: dict[str, list[tuple[float, float]]] = {"bench": [], "llama-bench": []}
    with open_transport("local") as transport:
        facts = read_facts(transport)
        folder = (
            find_engine(cache(), facts.machine, facts.isa_features)
            if arguments.engine_dir is None
            else read_engine_dir(arguments.engine_dir, architecture=facts.machine)
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
    sys.exit(max(abs(ratio - 1) for ratio in ratios) > LIMIT)


if __name__ == "__main__":
    main()
