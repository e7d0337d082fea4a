"""`compact-edge bench`: measures a pruned artifact and its baseline on a device."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from compact_edge.bench.defaults import DEPTHS, N_TOKENS, REPETITIONS
from compact_edge.flags import DIRECTORY, FILE
from runtime_bench.engines.registry import ENGINES

_PROVIDERS = ("cpu", "cuda", "dml", "webgpu")
_MOST_DEPTHS = 16


def _layers(_context: click.Context, _parameter: click.Parameter, value: str) -> int:
    if value == "all":
        return -1
    if not value.isdecimal() or int(value) > 10_000:
        raise click.BadParameter("expected a number of layers, or all")
    return int(value)


def _depths(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[int, ...]:
    parts = [part.strip() for part in value.split(",") if part.strip()]
    if len(parts) > _MOST_DEPTHS or not all(part.isdecimal() and 1 <= int(part) <= 1_000_000 for part in parts):
        raise click.BadParameter(
            f"expected up to {_MOST_DEPTHS} numbers of tokens, separated by commas, such as 128,512,1024"
        )
    return tuple(dict.fromkeys(int(part) for part in parts))


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    help="The unpruned artifact (default: the one that the same build published with --with-baseline).",
)
@click.option(
    "--device",
    default="local",
    show_default=True,
    help="Device: local, ssh:user@host[:port] or adb:SERIAL. `compact-edge devices` tests it.",
)
@click.option("--out", type=DIRECTORY, help="Output directory (default: NAME-bench).")
@click.option("--force", is_flag=True, help="Replace an earlier output.")
@click.option(
    "--engine",
    type=click.Choice(list(ENGINES)),
    help="Engine that runs the model (default: for GGUF llama-server if available, otherwise llama-cpp-python; for "
    "ONNX onnxruntime-genai).",
)
@click.option("--engine-dir", type=DIRECTORY, help="Directory that contains your own llama-server for the device.")
@click.option(
    "--device-python",
    help="Python interpreter on the device, for engines that are Python packages (default: python3; on this "
    "machine, the interpreter that runs compact-edge).",
)
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    help="Threads of the engine (default: physical cores minus one; on a remote device, the number in the target).",
)
@click.option(
    "--baseline-threads",
    type=click.IntRange(1, 1024),
    help="Threads for the baseline (default: as --threads).",
)
@click.option("--context", type=click.IntRange(16), help="Context length in tokens (default: the target's).")
@click.option(
    "--repetitions",
    type=click.IntRange(1, 1000),
    default=REPETITIONS,
    show_default=True,
    help="Pairs to measure. Fewer than 6 give no interval.",
)
@click.option(
    "--depths",
    default=",".join(map(str, DEPTHS)),
    show_default=True,
    callback=_depths,
    help="Context depths at which decode is measured, in tokens of the baseline.",
)
@click.option(
    "--tokens",
    "n_tokens",
    type=click.IntRange(2, 4096),
    default=N_TOKENS,
    show_default=True,
    help="Tokens to generate for each prompt and depth.",
)
@click.option(
    "--seconds", type=click.FloatRange(1), help="Time limit in seconds. A pair that would end later is not started."
)
@click.option(
    "--prompts",
    type=FILE,
    help="JSONL file of prompts (name, and text or messages) instead of the built-in ones.",
)
@click.option(
    "--text", type=FILE, help="Also measure bits per byte of both artifacts on this text. This runs on this machine."
)
@click.option(
    "--gpu-layers",
    default="0",
    callback=_layers,
    help="Layers on the GPU: a number or all (llama.cpp; default: 0).",
)
@click.option(
    "--execution-provider",
    type=click.Choice(_PROVIDERS),
    help="Execution provider of onnxruntime (default: the one that the ONNX folder was built for).",
)
@click.option(
    "--target", help="Device profile whose budgets are checked (default: the target that ARTIFACT was built for)."
)
@click.option(
    "--allow-unlike", is_flag=True, help="Compare even if the artifacts differ in quantization type, engine or threads."
)
@click.option("--fail-over-budget", is_flag=True, help="End with exit code 3 if a budget is exceeded.")
@click.option("--clean-device", is_flag=True, help="Remove all copied files from the device afterwards.")
@click.option("--json", "as_json", is_flag=True, help="Write report.json to stdout.")
def bench(as_json: bool, **values: Any) -> None:
    """Measure ARTIFACT against its unpruned BASELINE on a device and write a report.

    ARTIFACT and BASELINE are .gguf files, ONNX folders, or the output of `compact-edge build --with-baseline`.

    It measures memory, load time, time to first token, and prefill and decode speed at batch size 1. The two artifacts
    alternate, and each run uses a fresh process. The report gives the median ratio of each figure with a 95% interval.

    The output directory contains report.html, report.md, report.json and the raw records (samples.jsonl).
    """
    from compact_edge.bench.pipeline import BenchIncompleteError, OverBudgetError
    from compact_edge.bench.pipeline import bench as run
    from compact_edge.bench.plan import BenchOptions
    from compact_edge.bench.summary import print_bench
    from compact_edge.cli.library_env import quiet_libraries
    from compact_edge.terminal.console import Console, print_json

    quiet_libraries()
    options = BenchOptions(**values, command=_command())
    try:
        result = run(options, Console())
    except (BenchIncompleteError, OverBudgetError) as error:
        if as_json:
            print_json(dict(error.result.document))
        else:
            print_bench(error.result)
        raise
    if as_json:
        print_json(dict(result.document))
    else:
        print_bench(result)


def _command() -> str:
    """Return the command line, for the report."""
    from compact_edge.cli.main import Session

    session = click.get_current_context().find_object(Session)
    return shlex.join(["compact-edge", *(session.arguments if session is not None else ("bench",))])
