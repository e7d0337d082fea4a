"""The on-device report of a real model: GGUF on this machine, the same over ssh, and ONNX.

    python -m benchmarks.device.bench_report --out DIR [--repetitions 10] [--threads 1] [--ssh ssh:me@localhost]
    python -m benchmarks.device.bench_report --tables     # write the tables from the recorded result

Builds smollm2-135m at ratio 0.2 (`--split proportional`) for the targets gguf and onnx with their baselines, unless
DIR/build exists. Then it runs `compact-edge bench` on each, and writes the tables of README.md and docs/performance.md.
The reports stay in DIR. Needs the engine of `compact-edge engine build`, and an idle machine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, record, recorded, summary, table, write_table
from compact_edge.cli import main as cli

NAME = "bench-smollm2-135m"
SCRIPT = "device.bench_report"
RATIO = "0.2"
# Rows of the table: key of report.json, and label.
ROWS = (
    ("size_bytes", "file"),
    ("peak_rss_bytes", "peak RSS"),
    ("rss_anon_bytes", "RssAnon"),
    ("load_warm_s", "load, warm"),
    ("ttft_s:chat", "TTFT, chat of 5 turns"),
    ("prefill_characters_per_s", "prefill, characters/s"),
    ("decode_tokens_per_s:depth-128", "decode at depth 128, tokens/s"),
    ("decode_tokens_per_s:depth-1024", "decode at depth 1024, tokens/s"),
    ("characters_per_s", "decode, characters/s of the same text"),
    ("bits_per_byte", "bits per byte"),
)


def command(*words: str) -> None:
    """Run `compact-edge` in this process; end the script if it fails."""
    code = cli.run(list(words))
    if code:
        raise SystemExit(code)


def kept(document: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of report.json that the table needs, and where they come from."""
    metrics = {metric["key"]: metric for metric in document["metrics"]}
    return {
        **{key: document[key] for key in ("title", "summary", "device_spec", "engine", "settings", "pairs", "target")},
        "quant": document["subjects"]["pruned"]["quant"],
        "bits_per_byte_text": document["bits_per_byte_text"],
        "parent_cpu_share_max": document["parent_cpu_share_max"],
        "budgets": [{key: budget[key] for key in ("name", "passed")} for budget in document["budgets"]],
        "metrics": {
            key: {
                "unit": metrics[key]["unit"],
                "pruned": metrics[key]["pruned"]["median"],
                "baseline": metrics[key]["baseline"]["median"],
                "ratio": metrics[key]["ratio"],
                "verdict": metrics[key]["verdict"],
            }
            for key, _ in ROWS
            if key in metrics
        },
    }


def show(runs: Sequence[Mapping[str, Any]]) -> str:
    """The tables of the docs, one per run."""
    return "\n\n".join(_show_run(run) for run in runs)


def _show_run(run: Mapping[str, Any]) -> str:
    from runtime_bench.report.words import figure, ratio_words

    lines = []
    for key, label in ROWS:
        metric = run["metrics"].get(key)
        if metric is None:
            lines.append([label, "-", "-", "-"])
            continue
        sides = [figure(metric[side], metric["unit"]) for side in ("baseline", "pruned")]
        lines.append([label, *sides, ratio_words(metric["ratio"])])
    place = run["device_spec"].partition(":")[0]
    title = f"**{run['quant']}, {run['engine']['name']}, {place}**"
    return title + "\n\n" + table(("figure", "baseline", "pruned", "ratio [95%]"), lines)


def write_tables(runs: Sequence[Mapping[str, Any]]) -> None:
    """All runs in docs/performance.md, the first one in README.md."""
    write_table("performance.md", SCRIPT, show(runs))
    write_table(ROOT / "README.md", SCRIPT, show(runs[:1]))


def main() -> None:
    """Build, bench, record, and write the tables."""
    parser = argparse.ArgumentParser(description=summary(__doc__))
    parser.add_argument("--out", type=Path, help="folder of the build and of the reports")
    parser.add_argument("--repetitions", default="10", help="pairs of each run")
    parser.add_argument("--threads", default="1", help="threads of each program")
    parser.add_argument("--ssh", help="measure over this device too, such as ssh:me@localhost")
    parser.add_argument("--tables", action="store_true", help="only write the tables, from the recorded result")
    arguments = parser.parse_args()
    if arguments.tables:
        write_tables(recorded(NAME)["runs"])
        return
    if arguments.out is None:
        parser.error("--out is needed")
    build = arguments.out / "build"
    if not build.exists():
        targets = ("--target", "gguf", "--target", "onnx")
        sizes = ("--ratio", RATIO, "--split", "proportional")
        command("build", "smollm2-135m", *sizes, *targets, "--with-baseline", "--out", str(build))
    options = ("--repetitions", arguments.repetitions, "--threads", arguments.threads, "--force")
    runs = []
    devices = ["local", *([arguments.ssh] if arguments.ssh else [])]
    for kind, device in [*(("gguf", device) for device in devices), ("onnx", "local")]:
        out = arguments.out / f"{kind}-{device.partition(':')[0]}"
        engine = ("--engine", "llama-server" if kind == "gguf" else "onnxruntime-genai")
        command("bench", str(build / kind), "--device", device, *engine, *options, "--out", str(out))
        runs.append(kept(json.loads((out / "report.json").read_text(encoding="utf-8"))))
    record(NAME, {"ratio": float(RATIO), "runs": runs})
    write_tables(runs)


if __name__ == "__main__":
    main()
