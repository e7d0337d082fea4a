"""The functions of `compact_edge`: each takes the flags of its command as keywords and returns the result.

A keyword is a flag without `--`, with `_` for `-`: `--vocab-size 8192` is `vocab_size=8192`, and `--no-check` is
`no_check=True`. A flag that may be repeated takes one value, or a list or tuple of values. Paths are strings or `Path`.
`compact-edge COMMAND --help` describes each flag. The functions neither print nor change settings of the process.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from compact.base.progress import SILENT, Progress
from compact_edge.cli.keywords import flag_values

if TYPE_CHECKING:
    from compact.base.cache import Cache
    from compact.sources.model_source import ModelSource
    from compact_edge.building.exporting import ExportResult
    from compact_edge.building.pruning import PruneResult
    from compact_edge.building.result import BuildResult
    from compact_edge.tasks.scoring import AgainstResult, TasksResult, TextResult

    Name = str | os.PathLike[str]


def open_model(
    model: Name,
    *,
    pre: str | None = None,
    cache: Cache | str | os.PathLike[str] | None = None,
    progress: Progress = SILENT,
) -> ModelSource:
    """Open and check a model.

    >>> from compact_edge import open_model
    >>> open_model("tiny").vocab_size
    16384

    Args:
        model: checkpoint directory, GGUF file, Hub id (`org/name` or `org/name@revision`) or built-in model.
        pre: llama.cpp's name of the pre-tokenizer, if a GGUF file does not name it.
        cache: cache, or its directory, that keeps the checkpoint made from a GGUF file. None uses the user's cache.
        progress: shows the work.

    Returns:
        The model's name, directory, config.json and sizes. No weights are loaded.

    Raises:
        CompactEdgeError: as `compact.sources.model_source.open_source`.
    """
    from compact.base.cache import Cache, open_cache
    from compact.sources.model_source import open_source

    if isinstance(cache, Cache):
        return open_source(os.fspath(model), cache, progress, pre=pre)
    with open_cache(root=None if cache is None else Path(cache)) as opened:
        return open_source(os.fspath(model), opened, progress, pre=pre)


def prune(model: Name, *, progress: Progress = SILENT, **flags: Any) -> PruneResult:
    """Prune a model and write a Hugging Face checkpoint, as `compact-edge prune`.

    >>> from compact_edge import prune
    >>> result = prune("tiny", vocab_size=8192, intermediate_size=384, calibration_tokens=1024, out="tiny-pruned")
    >>> result.plan.vocab_size
    8192

    Args:
        model: as for `open_model`.
        progress: shows the work.
        flags: the flags of `compact-edge prune`. `out` is required.

    Returns:
        The plan, and the parameters by part.

    Raises:
        TypeError: a keyword is not a flag.
        UsageError: a value is not valid, or several processes were started with torchrun.
        CompactEdgeError: as `compact_edge.building.pruning.prune_model`.
    """
    from compact.base.distributed import launched
    from compact.base.errors import UsageError
    from compact_edge.building.pruning import prune_model
    from compact_edge.cli.commands.prune import prune as command
    from compact_edge.cli.commands.prune import pruning_options

    if launched() > 1:
        raise UsageError("prune: torchrun started several processes", "use compact-edge prune with torchrun")
    values = flag_values(command, model, flags)
    result = prune_model(
        values.pop("model"),
        values["out"],
        pruning_options(**values),
        quant=values["quant"],
        pre=values["pre"],
        force=values["force"],
        use_cache=not values["no_cache"],
        progress=progress,
    )
    assert result is not None, "one process writes the files"
    return result


def export(model: Name, *, progress: Progress = SILENT, **flags: Any) -> ExportResult:
    """Export a checkpoint to GGUF or ONNX and check it, as `compact-edge export`.

    >>> from compact_edge import export
    >>> result = export("tiny", quant="Q8_0", out="tiny-gguf")
    >>> result.path.name
    'tiny-7.1M-Q8_0.gguf'

    Args:
        model: checkpoint directory, Hub id or built-in model.
        progress: shows the work.
        flags: the flags of `compact-edge export`. `out` is required.

    Returns:
        The artifact's path, type and size, and the report of the parity gate.

    Raises:
        TypeError: a keyword is not a flag.
        UsageError: a value is not valid.
        GateError: the parity gate failed; nothing is published.
        CompactEdgeError: as `compact_edge.building.exporting.export_checkpoint`.
    """
    from compact_edge.building.exporting import export_checkpoint
    from compact_edge.cli.commands.export import export as command
    from compact_edge.cli.commands.export import export_options

    return export_checkpoint(export_options(**flag_values(command, model, flags)), progress)


@overload
def evaluate(model: Name, *, text: Name, against: Name, progress: Progress = ..., **flags: Any) -> AgainstResult: ...
@overload
def evaluate(model: Name, *, text: Name, progress: Progress = ..., **flags: Any) -> TextResult: ...
@overload
def evaluate(model: Name, *, tasks: str, progress: Progress = ..., **flags: Any) -> TasksResult: ...
def evaluate(model: Name, *, progress: Progress = SILENT, **flags: Any) -> TextResult | AgainstResult | TasksResult:
    """Measure a model on a text or on tasks, as `compact-edge eval`.

    >>> from pathlib import Path
    >>> from compact_edge import evaluate
    >>> _ = Path("notes.txt").write_text("def area(r): return 3.14 * r * r; " * 20)
    >>> result = evaluate("tiny", text="notes.txt")
    >>> result.bits_per_byte < 8
    True

    Args:
        model: checkpoint directory, GGUF file, ONNX folder, Hub id or built-in model.
        progress: shows the work.
        flags: the flags of `compact-edge eval`: `text`, `text` and `against`, or `tasks`, with those that belong to it.

    Returns:
        Bits per byte for `text`; a comparison with the words that cost most for `against`; metrics for `tasks`.

    Raises:
        TypeError: a keyword is not a flag.
        UsageError: a value is not valid, or flags exclude each other.
        CompactEdgeError: as `compact_edge.tasks.scoring.score`.
    """
    from compact_edge.cli.commands.eval import evaluate as command
    from compact_edge.tasks.scoring import AgainstResult, EvalOptions, save_words, score

    values = flag_values(command, model, flags)
    (named,) = values.pop("models")
    options = EvalOptions(named, **values)
    result = score(options, progress)
    if isinstance(result, AgainstResult):
        save_words(options, result, progress)
    return result


def build(model: Name = "tiny", *, progress: Progress = SILENT, **flags: Any) -> BuildResult:
    """Prune a model, export it for a target, check it and compare it with the original, as `compact-edge build`.

    >>> from compact_edge import build
    >>> result = build("tiny", target="gguf", quant="Q8_0", ratio=0.2, calibration_tokens=1024, out="tiny-compact")
    >>> result.artifacts["gguf"].name
    'tiny-compact-5.7M-Q8_0.gguf'

    Args:
        model: as for `open_model`.
        progress: shows the work.
        flags: the flags of `compact-edge build`. `target` is required.

    Returns:
        The plan, and for each format the artifact, its parity report and the measurements before and after.

    Raises:
        TypeError: a keyword is not a flag.
        UsageError: a value is not valid.
        GateError: the parity gate failed, or the artifact exceeds a budget; nothing is published.
        CompactEdgeError: as `compact_edge.building.pipeline.build`.
    """
    from compact_edge.building.pipeline import build as run
    from compact_edge.cli.commands.build import build as command
    from compact_edge.cli.commands.build import build_options

    return run(build_options(**flag_values(command, model, flags)), progress)
