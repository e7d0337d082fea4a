"""`compact-edge eval`: bits per byte of a checkpoint or artifact on a text."""

from __future__ import annotations

from pathlib import Path

import click

from compact_edge.commands.shared import FILE


@click.command("eval")
@click.argument("model")
@click.option("--text", type=FILE, required=True, help="Text, jsonl (field text or context) or parquet file.")
@click.option(
    "--split",
    type=click.Choice(["all", "train", "held-out"]),
    default="all",
    show_default=True,
    help="The whole text, its first 80% or its last 20%.",
)
@click.option("--max-bytes", type=click.IntRange(1), help="Evaluate at most this much of the text.")
@click.option("--window", type=click.IntRange(2), help="Positions of a window (default: 2048, or the model's maximum).")
@click.option("--threads", type=click.IntRange(1), help="Threads of the runtime (default: physical cores less one).")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", help="For a checkpoint.")
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON to stdout.")
def evaluate(
    model: str,
    text: Path,
    split: str,
    max_bytes: int | None,
    window: int | None,
    threads: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Bits per byte of MODEL on a text.

    MODEL is a .gguf file (scored by llama.cpp), an ONNX folder or its model.onnx (scored by onnxruntime), or a
    checkpoint directory, a model on the Hugging Face Hub (org/name or org/name@revision) or a built-in model (scored by
    Transformers in float32). All are scored by the same windows, so the figures stand in one table; lower is better.
    """
    from compact.cache import open_cache
    from compact.evaluate import evaluate_checkpoint, read_text
    from compact.source import open_source
    from compact_edge.build import default_threads
    from compact_edge.console import Console, print_json
    from compact_edge.quiet import quiet_libraries
    from compact_edge.side import evaluate_gguf

    quiet_libraries(model)
    content = read_text(text, split=split)
    if max_bytes is not None:
        content = content.encode("utf-8")[:max_bytes].decode("utf-8", "ignore")
    console = Console()
    folder = onnx_folder(model)
    if folder is not None:
        from compact_edge.format_onnx import evaluate_onnx

        result = evaluate_onnx(folder, content, threads=threads or default_threads(), window=window, progress=console)
    elif model.lower().endswith(".gguf"):
        result = evaluate_gguf(
            Path(model), content, threads=threads or default_threads(), window=window, progress=console
        )
    else:
        with open_cache() as cache:
            source = open_source(model, cache, console)
            result = evaluate_checkpoint(
                source.directory, content, window=window, device=device, dtype="float32", progress=console
            )
    if as_json:
        print_json({"model": model, "text": text.name, "split": split, **result.as_dict()})
        return
    click.echo(
        f"{result.bits_per_byte:.4f} bits per byte ({text.name}, {split}: {result.n_bytes:,} bytes, "
        f"{result.n_tokens:,} tokens, window {result.window})"
    )


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
