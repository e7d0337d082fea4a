"""`compact-edge eval`: measure bits per byte of a model on a text, or its accuracy on tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from compact_edge.flags import DIRECTORY, FILE

if TYPE_CHECKING:
    from compact_edge.tasks.scoring import AgainstResult, EvalOptions, TasksResult, TextResult


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
def evaluate(model: str, as_json: bool, **values: Any) -> None:
    """Measure bits per byte of MODEL on a text, or its accuracy on tasks.

    MODEL is one of these:

    \b
    - a .gguf file (scored by llama.cpp);
    - an ONNX folder or its model.onnx (scored by onnxruntime);
    - a checkpoint directory, a model on the Hugging Face Hub (org/name or
      org/name@revision) or a built-in model (scored by Transformers in float32).

    On a text, all models are scored with the same windows, so bits per byte are comparable. Lower is better. On tasks,
    all models get the same questions, each through its own tokenizer. The data of lm_eval's own tasks come from the
    Hub.

    With --against, both models score the text. The extra bits of MODEL are divided into three parts: words that MODEL
    splits and OTHER does not, the eight tokens after such a word, and everything else. The most expensive words are
    listed. To keep them, save them with --save-tokens and prune OTHER again with --keep-tokens.
    """
    from compact_edge.cli.library_env import quiet_libraries
    from compact_edge.tasks.files import need_hub
    from compact_edge.tasks.scoring import AgainstResult, EvalOptions, check_options, save_words, score
    from compact_edge.terminal.console import Console, print_json

    options = EvalOptions(model, **values)
    check_options(options)
    hub = options.tasks is not None and need_hub(options.task_names, options.include_path)
    quiet_libraries(model, options.against, tasks=options.tasks is not None, hub=hub)
    console = Console()
    result = score(options, console)
    if as_json:
        print_json(result.as_dict())
    else:
        _show(result, options)
    if isinstance(result, AgainstResult):
        save_words(options, result, console)


def _show(result: TextResult | AgainstResult | TasksResult, options: EvalOptions) -> None:
    from compact_edge.tasks.scoring import AgainstResult, TextResult
    from compact_edge.terminal.console import format_table

    if isinstance(result, TextResult):
        click.echo(
            f"{result.bits_per_byte:.4f} bits per byte ({result.text}, {result.split}: "
            f"{result.evaluation.n_bytes:,} bytes, {result.evaluation.n_tokens:,} tokens, "
            f"window {result.evaluation.window})"
        )
    elif isinstance(result, AgainstResult):
        click.echo(result.comparison.as_text())
        if options.save_tokens is None and any(word.missing for word in result.comparison.words):
            click.echo("to keep these words: --save-tokens FILE, then prune --keep-tokens FILE")
    else:
        click.echo(format_table(("TASK", "METRIC", "VALUE ± STANDARD ERROR", "ITEMS"), result.report.rows()))
