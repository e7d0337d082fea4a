"""`compact-edge eval`: bits per byte of a checkpoint or artifact on a text, or its accuracy on tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compact_edge.commands.shared import DIRECTORY, FILE

if TYPE_CHECKING:
    from compact.cache import Cache
    from compact_edge.console import Console
    from compact_edge.task_runtime import Runtime

_TEXT_ONLY = ("split", "max_bytes", "window")
_TASK_ONLY = ("include_path", "limit", "num_fewshot", "batch_size", "items")


@click.command("eval")
@click.argument("model")
@click.option("--text", type=FILE, help="Bits per byte of a text, jsonl (field text or context) or parquet file.")
@click.option("--tasks", help="Accuracy on tasks of LM-Evaluation-Harness, such as arc_easy,hellaswag,mmlu.")
@click.option(
    "--split",
    type=click.Choice(["all", "train", "held-out"]),
    default="all",
    show_default=True,
    help="The whole text, its first 80% or its last 20%.",
)
@click.option("--max-bytes", type=click.IntRange(1), help="Evaluate at most this much of the text.")
@click.option("--window", type=click.IntRange(2), help="Positions of a window (default: 2048, or the model's maximum).")
@click.option(
    "--include-path",
    type=DIRECTORY,
    help="A folder of task files of your own. Python functions that they name are run: name only a folder you trust.",
)
@click.option("--limit", type=click.IntRange(1), help="At most this many items of each task, the first ones.")
@click.option("--num-fewshot", type=click.IntRange(0), help="Examples before each question (default: the task's own).")
@click.option("--batch-size", type=click.IntRange(1, 64), help="Sequences of a task scored at a time (default: 16).")
@click.option("--items", type=FILE, help="Write each item of the tasks with the model's answers to this jsonl file.")
@click.option("--threads", type=click.IntRange(1), help="Threads of the runtime (default: physical cores less one).")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", help="For a checkpoint.")
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON to stdout.")
def evaluate(model: str, text: Path | None, tasks: str | None, as_json: bool, **options: Any) -> None:
    """Bits per byte of MODEL on a text, or its accuracy on tasks.

    MODEL is a .gguf file (scored by llama.cpp), an ONNX folder or its model.onnx (scored by onnxruntime), or a
    checkpoint directory, a model on the Hugging Face Hub (org/name or org/name@revision) or a built-in model (scored by
    Transformers in float32). On a text, all are scored by the same windows, so the figures stand in one table; lower is
    better. On tasks, all get the same questions, each through its own tokenizer; the data of lm_eval's own tasks come
    from the Hub.
    """
    from compact.errors import UsageError

    if (text is None) == (tasks is None):
        raise UsageError("give either --text or --tasks", "see compact-edge eval --help")
    others = _TASK_ONLY if tasks is None else _TEXT_ONLY
    for name in others:
        if options[name] not in (None, "all"):
            raise UsageError(f"--{name.replace('_', '-')} is for --{'tasks' if tasks is None else 'text'}")
    if tasks is not None:
        _evaluate_tasks(model, tasks, as_json, options)
    else:
        assert text is not None
        _evaluate_text(model, text, as_json, options)


def _evaluate_text(model: str, text: Path, as_json: bool, options: Mapping[str, Any]) -> None:
    from compact.cache import open_cache
    from compact.evaluate import evaluate_checkpoint, read_text
    from compact.source import open_source
    from compact_edge.build import default_threads
    from compact_edge.console import Console, print_json
    from compact_edge.quiet import quiet_libraries
    from compact_edge.side import evaluate_gguf

    quiet_libraries(model)
    split, max_bytes, window = options["split"], options["max_bytes"], options["window"]
    content = read_text(text, split=split)
    if max_bytes is not None:
        content = content.encode("utf-8")[:max_bytes].decode("utf-8", "ignore")
    console = Console()
    threads = options["threads"] or default_threads()
    folder = onnx_folder(model)
    if folder is not None:
        from compact_edge.format_onnx import evaluate_onnx

        result = evaluate_onnx(folder, content, threads=threads, window=window, progress=console)
    elif model.lower().endswith(".gguf"):
        result = evaluate_gguf(Path(model), content, threads=threads, window=window, progress=console)
    else:
        with open_cache() as cache:
            source = open_source(model, cache, console)
            result = evaluate_checkpoint(
                source.directory, content, window=window, device=options["device"], dtype="float32", progress=console
            )
    if as_json:
        print_json({"model": model, "text": text.name, "split": split, **result.as_dict()})
        return
    click.echo(
        f"{result.bits_per_byte:.4f} bits per byte ({text.name}, {split}: {result.n_bytes:,} bytes, "
        f"{result.n_tokens:,} tokens, window {result.window})"
    )


def _evaluate_tasks(model: str, tasks: str, as_json: bool, options: Mapping[str, Any]) -> None:
    from compact.cache import open_cache
    from compact.errors import OutputExistsError, StorageError, UsageError
    from compact_edge.console import Console, format_table, print_json
    from compact_edge.quiet import quiet_libraries
    from compact_edge.task_files import need_hub
    from compact_edge.task_runtime import BATCH_SIZE
    from compact_edge.tasks import evaluate_tasks, require_lm_eval, write_items

    require_lm_eval()
    names = list(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip()))
    if not names:
        raise UsageError("--tasks names no task", "name some, as in --tasks arc_easy,piqa")
    include, items = options["include_path"], options["items"]
    if items is not None and items.exists():
        raise OutputExistsError(f"{items} is there already", "choose another name, or remove it")
    if items is not None and not items.absolute().parent.is_dir():
        raise StorageError(f"--items {items}: no such folder to write into", "make it, or choose another name")
    quiet_libraries(model, tasks=True, hub=need_hub(names, include))
    console = Console()
    batch_size = options["batch_size"] or BATCH_SIZE
    with open_cache() as cache, _task_runtime(model, cache, console, batch_size, options) as runtime:
        report = evaluate_tasks(
            runtime,
            names,
            include_path=include,
            limit=options["limit"],
            num_fewshot=options["num_fewshot"],
            batch_size=batch_size,
            keep_items=items is not None,
            progress=console,
        )
    if items is not None:
        write_items(items, report)
    if as_json:
        print_json({"model": model, "num_fewshot": options["num_fewshot"], **report.as_dict()})
        return
    click.echo(format_table(("TASK", "METRIC", "VALUE ± STANDARD ERROR", "ITEMS"), report.rows()))


@contextmanager
def _task_runtime(
    model: str, cache: Cache, console: Console, batch_size: int, options: Mapping[str, Any]
) -> Iterator[Runtime]:
    from compact_edge.build import default_threads

    threads = options["threads"] or default_threads()
    folder = onnx_folder(model)
    runtime: Runtime
    if folder is not None:
        from compact_edge.task_engines import OnnxRuntime

        runtime = OnnxRuntime(folder, threads=threads)
    elif model.lower().endswith(".gguf"):
        from compact_edge.task_engines import GgufRuntime

        runtime = GgufRuntime(Path(model), threads=threads, batch_size=batch_size)
    else:
        from compact.source import open_source
        from compact_edge.task_checkpoint import CheckpointRuntime

        source = open_source(model, cache, console)
        runtime = CheckpointRuntime(source.directory, device=options["device"], batch_size=batch_size)
    try:
        yield runtime
    finally:
        runtime.close()


def onnx_folder(model: str) -> Path | None:
    """The ONNX folder that MODEL names, itself or by its model.onnx; None for every other kind of model.

    Raises:
        ModelNotFoundError: no such file.
        UsageError: a graph that is not the one which the folder's genai_config.json names.
    """
    from compact.errors import ModelNotFoundError, UsageError
    from exporters.onnx_folder import read_folder

    path = Path(model)
    if path.suffix.lower() == ".onnx" and not path.is_dir():
        if not path.is_file():
            raise ModelNotFoundError(f"no ONNX file at {path}", "name the folder, or the model.onnx in it")
        graph = read_folder(path.parent).model
        if graph.name != path.name:
            raise UsageError(f"{path}: genai_config.json beside it is for {graph.name}", f"name {graph} or its folder")
        return path.parent
    # A Hub id is no directory here, and a checkpoint has no such file.
    return path if (path / "genai_config.json").is_file() else None
