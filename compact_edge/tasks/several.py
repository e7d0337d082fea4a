"""`eval` with several models, such as `eval DIR/*.gguf`: chooses the files to score, and makes the table of results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from compact.base.errors import DataError, UsageError
from compact_edge.tasks.scoring import EvalOptions, TasksResult, TextResult, check_options, score

if TYPE_CHECKING:
    from compact.base.progress import Progress

# Options that write one file, or compare with one model.
_ONE_MODEL = ("against", "items")


def models_to_score(options: EvalOptions, models: Sequence[str], progress: Progress) -> list[str]:
    """Return the models to score, in order and each once. All options and files are checked first.

    `DIR/*.gguf` gives all files of a folder. So if several files are named, two kinds are left out: further parts of a
    split GGUF, and GGUFs that are not models (importance matrices, adapters, mmproj files).

    Args:
        options: the options. `model` is ignored.
        models: the models, as the user named them.
        progress: receives a note for each GGUF that is left out because it is not a model.

    Raises:
        UsageError: an option is for one model only.
        CompactEdgeError: as `check_options`, or a file is damaged or not a model.
    """
    check_options(options)
    if len(models) == 1:
        return list(models)
    for name in _ONE_MODEL:
        if getattr(options, name) is not None:
            raise UsageError(f"--{name}: takes one MODEL, but {len(models)} are given", "name one MODEL")
    from compact.checkpoints.gguf_model import other_kind
    from compact.sources.model_source import check_exists
    from exporters.opened import named_artifact

    chosen: dict[Path | str, str] = {}
    left_out: list[str] = []
    for model in models:
        if (what := other_kind(Path(model))) is not None:
            left_out.append(f"{model}: {what}; left out")
            continue
        artifact = named_artifact(model, options.pre)
        if artifact is None:
            check_exists(model)
        chosen.setdefault(model if artifact is None else artifact.path.absolute(), model)
    if not chosen:
        raise DataError(f"none of the {len(models)} files is a model ({left_out[0]})", "name a file that is a model")
    for note in left_out:
        progress.note(note)
    return list(chosen.values())


def score_each(options: EvalOptions, models: Sequence[str], progress: Progress) -> Iterator[TextResult | TasksResult]:
    """Score models one after the other. Only one of them is in memory at a time.

    Args:
        options: the options, without `against`. `model` is ignored.
        models: from `models_to_score`.
        progress: shows the work.

    Raises:
        CompactEdgeError: as `score`.
    """
    for model in models:
        result = score(replace(options, model=model), progress)
        assert isinstance(result, TextResult | TasksResult), "--against takes one model"
        yield result


def table_of(results: Sequence[TextResult | TasksResult]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the header and the rows of one table. All results must be of the same kind."""
    rows: list[tuple[str, ...]] = []
    header: tuple[str, ...] = ("MODEL", "TASK", "METRIC", "VALUE ± STANDARD ERROR", "ITEMS")
    for result in results:
        if isinstance(result, TasksResult):
            rows += [(result.model, *row) for row in result.report.rows()]
            continue
        header = ("MODEL", "BITS PER BYTE", "BYTES", "TOKENS", "WINDOW")
        found = result.evaluation
        counts = f"{found.n_bytes:,}", f"{found.n_tokens:,}", str(found.window)
        rows.append((result.model, f"{result.bits_per_byte:.4f}", *counts))
    return header, rows
