"""Accuracy on tasks of LM-Evaluation-Harness before and after pruning: of the checkpoint, and of a GGUF made from it.

    python -m benchmarks.quality.task_accuracy                                # 500 items of each task
    python -m benchmarks.quality.task_accuracy --methods unpruned,COMPACT --ratios 0.2
    python -m benchmarks.quality.task_accuracy --write                        # only write the table of docs/quality.md

Offline: the tasks are files in `tasks` of the data folder (docs/quality.md). Checkpoints are scored through
Transformers in float32, GGUF files through llama.cpp. Every cell is saved when it is done; a later run computes only
missing cells.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from benchmarks.common import (
    DOCUMENTED,
    Cells,
    cache,
    data_folder,
    pruned_checkpoint,
    recorded,
    result_name,
    summary,
    table,
    write_table,
)
from benchmarks.quality.methods import DISTILLED, OPTIONS, RECOVERY_TOKENS, Setting
from compact.pruning.plan import PLAN, read_plan
from compact.sources.model_source import open_source
from compact_edge.cli.library_env import quiet_libraries
from compact_edge.tasks.checkpoint import CheckpointRuntime
from compact_edge.tasks.evaluate import evaluate_tasks
from compact_edge.terminal.console import Console
from exporters.gguf.artifact import Export, checkpoint_id, make_artifact
from exporters.gguf.tasks import GgufRuntime
from exporters.task_runtime import Runtime

NAME, SCRIPT = "task-accuracy", "quality.task_accuracy"
TASKS = {
    "local_piqa": "PIQA",
    "local_arc_easy": "ARC-Easy",
    "local_winogrande": "WinoGrande",
    "local_lambada_openai": "LAMBADA",
}
METRIC = "acc"
UNPRUNED, FLOAT32 = "unpruned", "float32"
# Order of the rows in the table; name of the runtime -> its words in the table.
ORDER = (UNPRUNED, "COMPACT", "repair", DISTILLED)
RUNTIMES = {FLOAT32: "checkpoint, float32", "Q8_0": "GGUF, Q8_0"}


def model_directory(method: str, ratio: float, model: str = "smollm2-135m") -> Path:
    """The checkpoint of a method (`methods.OPTIONS`) at a ratio, through the cache."""
    store = cache()
    source = open_source(model, store, Console())
    if method == UNPRUNED:
        return source.directory
    return pruned_checkpoint(source, OPTIONS[method](Setting(source, ratio, 0, store)), store).directory


def gguf_file(directory: Path, quant: str) -> Path:
    """The GGUF of a checkpoint in a type that needs no importance matrix, through the cache."""
    plan = directory / PLAN
    pre = read_plan(plan).pre if plan.is_file() else None
    export = Export(directory, checkpoint_id(directory), quant, name="model", pre=pre)
    return make_artifact(export, cache(), Console()).path


def key(method: str, ratio: float, runtime: str, task: str) -> str:
    """The key of a cell. The unpruned model has no ratio."""
    return f"{0 if method == UNPRUNED else ratio:g}|{method}|{runtime}|{task}"


def models(methods: Sequence[str], ratios: Sequence[float]) -> list[tuple[str, float]]:
    """(method, ratio) of every row."""
    pruned = [(method, ratio) for ratio in ratios for method in methods if method != UNPRUNED]
    return [(UNPRUNED, 0.0), *pruned] if UNPRUNED in methods else pruned


def score(opened: Runtime, task: str, limit: int) -> dict[str, Any]:
    """A cell: the accuracy of an opened model on a task, and what it cost."""
    begin = time.monotonic()
    report = evaluate_tasks(opened, [task], include_path=data_folder() / "tasks", limit=limit, progress=Console())
    seconds = time.monotonic() - begin
    (result,) = report.results
    (accuracy,) = (metric for metric in result.metrics if metric.name == METRIC)
    return {
        "value": round(accuracy.value, 4),
        "stderr": round(accuracy.stderr or 0.0, 4),
        "items": result.n_items,
        "tokens": report.tokens,
        "seconds": round(seconds, 1),
    }


def table_of(cells: Mapping[str, Any]) -> str:
    """Rows: model and runtime; columns: tasks, each accuracy with its standard error, and their mean."""
    runtimes = list(dict.fromkeys(name.split("|")[2] for name in cells))
    found = sorted(
        {(float(name.split("|")[0]), name.split("|")[1]) for name in cells},
        key=lambda row: (row[0], ORDER.index(row[1]) if row[1] in ORDER else len(ORDER)),
    )
    rows = []
    for ratio, method in found:
        for runtime in runtimes:
            mine = [cells.get(key(method, ratio, runtime, task)) for task in TASKS]
            done = [cell for cell in mine if cell]
            if not done:
                continue
            cuts = [f"{100 * c['value']:.1f} ± {100 * c['stderr']:.1f}" if c else "-" for c in mine]
            mean = "-"
            if len(done) == len(TASKS):
                # Tasks are independent samples, so that their variances add up.
                value = sum(c["value"] for c in done) / len(done)
                error = math.sqrt(sum(c["stderr"] ** 2 for c in done)) / len(done)
                mean = f"{100 * value:.1f} ± {100 * error:.1f}"
            rows.append([f"{ratio:g}" if ratio else "-", method, RUNTIMES.get(runtime, runtime), *cuts, mean])
    return table(["ratio", "method", "scored", *TASKS.values(), "mean"], rows)


def open_runtime(directory: Path, runtime: str, threads: int) -> Runtime:
    """The checkpoint itself in float32 (`float32`), or its GGUF in a type."""
    if runtime == FLOAT32:
        return CheckpointRuntime(directory, device="auto")
    return GgufRuntime(gguf_file(directory, runtime), threads=threads)


@click.command(help=summary(__doc__))
@click.option("--model", default=DOCUMENTED, show_default=True, help="Built-in name, directory or GGUF file.")
@click.option("--methods", default=",".join(ORDER), show_default=True, help="Methods to score.")
@click.option("--ratios", default="0.1,0.2,0.35", show_default=True, help="Shares of all parameters to remove.")
@click.option("--quant", default="Q8_0", show_default=True, help="Type of the GGUF.")
@click.option("--limit", default=500, show_default=True, help="Items of each task, the first ones.")
@click.option("--threads", default=1, show_default=True, help="Threads of llama.cpp.")
@click.option("--write", is_flag=True, help="Only write the table of docs/quality.md.")
def main(*, model: str, methods: str, ratios: str, quant: str, limit: int, threads: int, write: bool) -> None:
    """Compute the cells that are not recorded yet, print and write the table."""
    if write:
        write_table("quality.md", SCRIPT, table_of(recorded(NAME)["cells"]))
        return
    quiet_libraries(tasks=True)
    cells = Cells(
        result_name(NAME, model),
        {
            "model": model,
            "limit": limit,
            "metric": METRIC,
            "lm_eval": version("lm_eval"),
            "recovery_tokens": RECOVERY_TOKENS,
        },
    )
    wanted = models(methods.split(","), [float(ratio) for ratio in ratios.split(",")])
    for method, ratio in wanted:
        for runtime in (FLOAT32, quant):
            missing = [task for task in TASKS if key(method, ratio, runtime, task) not in cells.cells]
            if not missing:
                continue
            opened = open_runtime(model_directory(method, ratio, model), runtime, threads)
            try:
                for task in missing:
                    cells.get(key(method, ratio, runtime, task), lambda o=opened, t=task: score(o, t, limit))  # type: ignore[misc]
            finally:
                opened.close()
    print(table_of(cells.cells))
    if model == DOCUMENTED:
        write_table("quality.md", SCRIPT, table_of(cells.cells))


if __name__ == "__main__":
    main()
