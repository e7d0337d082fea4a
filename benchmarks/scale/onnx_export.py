"""Export to ONNX beside other exporters: time, peak memory and file size, in one run.

    python -m benchmarks.scale.onnx_export [--quants fp32,int8,int4] [--runs 3] [--optimum PYTHON]

Ours is `exporters.onnx.write.write_onnx` in its own process. The others are onnxruntime-genai's model builder alone (by
its own command, with the same settings if it has them) and, with `--optimum`, the exporter of optimum-onnx. That
exporter needs an older Transformers than ours and cannot be installed beside this package, so that PYTHON is the Python
of another environment. Runs are interleaved; the median is reported. Exit code 1 if ours takes more than 1.5 times as
long as the builder. Writes a table of docs/onnx.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, cache, record, summary, table, write_table
from compact.sources.model_source import open_source
from compact_edge.cli.library_env import quiet_libraries
from compact_edge.terminal.console import Console

MODEL = "smollm2-135m"
LIMIT = 1.5
OURS = """
import sys
from functools import partial
from pathlib import Path
from exporters.onnx.write import write_onnx
from exporters.onnx.types import onnx_options
write_onnx(Path(sys.argv[1]), Path(sys.argv[2]), onnx_options(sys.argv[3]))
"""
OPTIMUM = """
import sys
from optimum.exporters.onnx import main_export
main_export(sys.argv[1], output=sys.argv[2], task="text-generation-with-past", dtype="fp32", device="cpu")
"""


def ours(checkpoint: Path, out: Path, quant: str) -> list[str]:
    """The command of our writer."""
    return [sys.executable, "-c", OURS, str(checkpoint), str(out), quant]


def builder(checkpoint: Path, out: Path, quant: str) -> list[str]:
    """The builder's own command. Its int4 differs from ours: it cannot open its own with an output matrix of 8 bits."""
    options = ["--extra_options", "algo_config=rtn_last"] if quant == "int4" else []
    module = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    places = ["-i", str(checkpoint), "-o", str(out), "-c", str(out.parent / "builder-cache")]
    return [*module, *places, "-p", quant, "-e", "cpu", *options]


def optimum(python: Path, checkpoint: Path, out: Path, quant: str) -> list[str]:
    """The command of optimum-onnx, run by the Python of another environment. It has no types."""
    del quant
    return [str(python), "-c", OPTIMUM, str(checkpoint), str(out)]


def measured(command: Sequence[str], out: Path) -> dict[str, float] | str:
    """Seconds, peak resident bytes and bytes of the model's files; the last line of output if the command failed."""
    shutil.rmtree(out, ignore_errors=True)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    started = time.monotonic()
    process = subprocess.Popen(list(command), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    output = process.stdout.read().decode("utf-8", "replace")
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    if status != 0:
        return (output.strip().splitlines() or ["no output"])[-1]
    size = sum(path.stat().st_size for path in out.rglob("*") if ".onnx" in path.name)
    return {"seconds": seconds, "peak_bytes": usage.ru_maxrss * 1024.0, "size_bytes": float(size)}


def main() -> int:
    """Run all tools, print, record and write the table."""
    parser = argparse.ArgumentParser(description=summary(__doc__))
    parser.add_argument("--model", default=MODEL, help="built-in name, directory or GGUF file")
    parser.add_argument("--quants", default="fp32,int8,int4", help="types")
    parser.add_argument("--runs", type=int, default=3, help="runs of each program")
    parser.add_argument("--optimum", type=Path, help="Python of an environment with optimum-onnx; fp32 only")
    arguments = parser.parse_args()
    quiet_libraries(arguments.model)
    checkpoint = open_source(arguments.model, cache(), Console()).directory
    os.environ["PYTHONPATH"] = str(ROOT)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for quant in arguments.quants.split(","):
            tools: dict[str, Callable[[Path, Path, str], list[str]]] = {"compact-edge": ours, "builder": builder}
            if arguments.optimum is not None and quant == "fp32":
                tools["optimum"] = partial(optimum, arguments.optimum)
            runs: dict[str, list[dict[str, float] | str]] = {name: [] for name in tools}
            for _ in range(arguments.runs):
                for name, command in tools.items():
                    out = Path(scratch) / name
                    runs[name].append(measured(command(checkpoint, out, quant), out))
                    print(quant, name, json.dumps(runs[name][-1]), flush=True)
            for name, found in runs.items():
                good = [run for run in found if isinstance(run, dict)]
                row: dict[str, Any] = {"quant": quant, "tool": name}
                if good:
                    row |= {key: statistics.median(run[key] for run in good) for key in good[0]}
                else:
                    row["failed"] = found[-1]
                rows.append(row)
    print(show(rows))
    if arguments.model == MODEL:
        write_table("performance.md", "scale.onnx_export", show(rows))
    record("onnx-export", {"model": arguments.model, "runs": arguments.runs, "rows": rows})
    return 1 if any(ratio > LIMIT for ratio in ratios(rows)) else 0


def show(rows: Sequence[dict[str, Any]]) -> str:
    """The table of the docs."""
    return table(("type", "tool", "seconds", "peak memory", "model files"), [cells(row) for row in rows])


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    if "failed" in row:
        return [row["quant"], row["tool"], "failed", "", row["failed"][:80]]
    peak, size = f"{row['peak_bytes'] / 1e6:.0f} MB", f"{row['size_bytes'] / 1e6:.1f} MB"
    return [row["quant"], row["tool"], f"{row['seconds']:.1f}", peak, size]


def ratios(rows: Sequence[dict[str, Any]]) -> list[float]:
    """Our seconds over the builder's, for each type."""
    seconds = {(row["quant"], row["tool"]): row["seconds"] for row in rows if "seconds" in row}
    return [
        seconds[quant, "compact-edge"] / seconds[quant, "builder"]
        for quant, tool in seconds
        if tool == "builder" and (quant, "compact-edge") in seconds
    ]


if __name__ == "__main__":
    raise SystemExit(main())
