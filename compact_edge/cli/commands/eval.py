"""`compact-edge eval`: measure bits per byte of a model on a text, or its accuracy on tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compact_edge.flags import DIRECTORY, FILE

if TYPE_CHECKING:
    from compact.base.cache import Cache
    from compact_edge.terminal.console import Console
    from exporters.task_runtime import Runtime

_TEXT_ONLY = ("against", "split", "max_bytes", "window", "words", "save_tokens")
_AGAINST_ONLY = ("words", "save_tokens")
_TASK_ONLY = ("include_path", "limit", "num_fewshot", "batch_size", "items")


@click.command("eval")
@click.argument("model")
@click.option(
    "--text", type=FILE, help="Measure bits per byte on this text, jsonl (field text or context) or parquet file."
)
@click.option(
    "--against", metavar="OTHER", help="With --text: show where MODEL is worse than OTHER, and on which words."
)
@click.option("--tasks", help="Measure accuracy on tasks of LM-Evaluation-Harness, such as arc_easy,hellaswag,mmlu.")
@click.option(
    "--split",
    type=click.Choice(["all", "train", "held-out"]),
    default="all",
    show_default=True,
    help="Part of the text to use: all of it, the first 80% or the last 20%.",
)
@click.option("--max-bytes", type=click.IntRange(1), help="Evaluate at most this many bytes of the text.")
@click.option(
    "--window", type=click.IntRange(2), help="Window length in tokens (default: 2048, or the model's maximum)."
)
@click.option("--words", type=click.IntRange(1), help="With --against: how many words to list and save (default: 50).")
@click.option(
    "--save-tokens",
    type=FILE,
    help="With --against: write the words that MODEL lacks to this new file. Pass it to --keep-tokens of "
    "prune or build.",
)
@click.option(
    "--include-path",
    type=DIRECTORY,
    help="Folder with your own task files. Python functions named in them are executed, so use only a folder that you "
    "trust.",
)
@click.option("--limit", type=click.IntRange(1), help="Use only the first N items of each task.")
@click.option("--num-fewshot", type=click.IntRange(0), help="Examples before each question (default: the task's own).")
@click.option("--batch-size", type=click.IntRange(1, 64), help="Task sequences per batch (default: 16).")
@click.option("--items", type=FILE, help="Write every task item and the model's answers to this jsonl file.")
@click.option("--threads", type=click.IntRange(1), help="Threads of the runtime (default: physical cores minus one).")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", help="Device for a checkpoint."
)
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON to stdout.")
def evaluate(model: str, text: Path | None, tasks: str | None, as_json: bool, **options: Any) -> None:
    """Measure bits per byte of MODEL on a text, or its accuracy on tasks.

    MODEL is a .gguf file (scored by llama.cpp), an ONNX folder or its model.onnx (scored by onnxruntime), or a
    checkpoint directory, a model on the Hugging Face Hub (org/name or org/name@revision) or a built-in model (scored by
    Transformers in float32). On a text, all are scored with the same windows, so the figures are comparable. Lower is
    better. On tasks, all get the same questions, each through its own tokenizer. The data of lm_eval's own tasks come
    from the Hub.

    With --against, both models score the text. The extra bits of MODEL are divided into three parts: words that MODEL
    splits and OTHER does not, the eight tokens after such a word, and everything else. The most expensive words are
    listed. Keep them when you prune OTHER again.
    """
    from compact.base.errors import UsageError

    if (text is None) == (tasks is None):
        raise UsageError("give either --text or --tasks", "see compact-edge eval --help")
    others = _TASK_ONLY if tasks is None else _TEXT_ONLY
    for name in others:
        if options[name] not in (None, "all"):
            raise UsageError(f"--{name.replace('_', '-')} is for --{'tasks' if tasks is None else 'text'}")
    against = options["against"]
    for name in _AGAINST_ONLY:
        if against is None and options[name] is not None:
            raise UsageError(f"--{name.replace('_', '-')} is for --against", "name the model to compare with")
    if tasks is not None:
        _evaluate_tasks(model, tasks, as_json, options)
    else:
        assert text is not None
        if against is not None:
            _evaluate_against(model, against, text, as_json, options)
            return
        _evaluate_text(model, text, as_json, options)


def _evaluate_text(model: str, text: Path, as_json: bool, options: Mapping[str, Any]) -> None:
    from compact.base.cache import open_cache
    from compact.base.devices import default_threads
    from compact.forward.evaluate import evaluate_checkpoint
    from compact.sources.model_source import open_source
    from compact_edge.cli.library_env import quiet_libraries
    from compact_edge.terminal.console import Console, print_json
    from exporters.opened import named_artifact

    quiet_libraries(model)
    split, window = options["split"], options["window"]
    content = _content(text, options)
    console = Console()
    threads = options["threads"] or default_threads()
    artifact = named_artifact(model)
    if artifact is not None:
        result = artifact.score(content, threads=threads, window=window, progress=console)
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


def _content(text: Path, options: Mapping[str, Any]) -> str:
    from compact.forward.evaluate import read_text

    content = read_text(text, split=options["split"])
    max_bytes = options["max_bytes"]
    return content if max_bytes is None else content.encode("utf-8")[:max_bytes].decode("utf-8", "ignore")


def _evaluate_against(model: str, against: str, text: Path, as_json: bool, options: Mapping[str, Any]) -> None:
    from compact.base.cache import open_cache
    from compact.base.devices import default_threads
    from compact_edge.cli.library_env import quiet_libraries
    from compact_edge.tasks.against import N_WORDS, check_tokens_file, compare, save_tokens
    from compact_edge.terminal.console import Console, print_json

    out = options["save_tokens"]
    if out is not None:
        check_tokens_file(out)
    quiet_libraries(model, against)
    content = _content(text, options)
    console = Console()
    with open_cache() as cache:
        found = compare(
            model,
            against,
            content,
            n_words=options["words"] or N_WORDS,
            window=options["window"],
            device=options["device"],
            threads=options["threads"] or default_threads(),
            cache=cache,
            progress=console,
        )
    if as_json:
        print_json(
            {"model": model, "against": against, "text": text.name, "split": options["split"], **found.as_dict()}
        )
    else:
        click.echo(found.as_text())
        if out is None and any(word.missing for word in found.words):
            click.echo("to keep these words: --save-tokens FILE, then prune --keep-tokens FILE")
    if out is not None:
        save_tokens(out, found, console)


def _evaluate_tasks(model: str, tasks: str, as_json: bool, options: Mapping[str, Any]) -> None:
    from compact.base.cache import open_cache
    from compact.base.errors import UsageError
    from compact_edge.cli.library_env import quiet_libraries
    from compact_edge.output import check_new_file
    from compact_edge.tasks.evaluate import evaluate_tasks, require_lm_eval, write_items
    from compact_edge.tasks.files import need_hub
    from compact_edge.terminal.console import Console, format_table, print_json
    from exporters.task_runtime import BATCH_SIZE

    require_lm_eval()
    names = list(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip()))
    if not names:
        raise UsageError("--tasks names no task", "name some, as in --tasks arc_easy,piqa")
    include, items = options["include_path"], options["items"]
    if items is not None:
        check_new_file(items, "--items")
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
    from compact.base.devices import default_threads
    from exporters.opened import named_artifact

    threads = options["threads"] or default_threads()
    artifact = named_artifact(model)
    runtime: Runtime
    if artifact is not None:
        runtime = artifact.open_for_tasks(threads=threads, batch_size=batch_size)
    else:
        from compact.sources.model_source import open_source
        from compact_edge.tasks.checkpoint import CheckpointRuntime

        source = open_source(model, cache, console)
        runtime = CheckpointRuntime(source.directory, device=options["device"], batch_size=batch_size)
    try:
        yield runtime
    finally:
        runtime.close()
