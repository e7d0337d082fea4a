"""`compact-edge eval` as a function: bits per byte on a text, two models on one text, or accuracy on tasks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compact.base.errors import UsageError

if TYPE_CHECKING:
    from compact.base.cache import Cache
    from compact.base.progress import Progress
    from compact.forward.evaluate import Evaluation
    from compact_edge.tasks.against import Comparison
    from compact_edge.tasks.evaluate import TaskReport
    from exporters.task_runtime import Runtime

_TEXT_ONLY = ("against", "split", "max_bytes", "window", "words", "save_tokens")
_AGAINST_ONLY = ("words", "save_tokens")
_TASK_ONLY = ("include_path", "limit", "num_fewshot", "batch_size", "items")


@dataclass(frozen=True)
class EvalOptions:
    """The options of an evaluation, with the names of the flags of `eval`. None means that a flag is not given."""

    model: str
    text: Path | None = None
    against: str | None = None
    tasks: str | None = None
    split: str = "all"
    max_bytes: int | None = None
    window: int | None = None
    words: int | None = None
    save_tokens: Path | None = None
    include_path: Path | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    batch_size: int | None = None
    items: Path | None = None
    threads: int | None = None
    device: str = "auto"

    @property
    def task_names(self) -> list[str]:
        """The requested tasks, each once."""
        return list(dict.fromkeys(name.strip() for name in (self.tasks or "").split(",") if name.strip()))


@dataclass(frozen=True)
class TextResult:
    """Bits per byte of a model on a text.

    Attributes:
        model: the model, as requested.
        text: name of the text's file.
        split: the part of the text: all, train or held-out.
        evaluation: the measurement.
    """

    model: str
    text: str
    split: str
    evaluation: Evaluation

    @property
    def bits_per_byte(self) -> float:
        """Total negative log2-likelihood of the scored tokens, divided by their UTF-8 bytes."""
        return self.evaluation.bits_per_byte

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values for `--json`."""
        return {"model": self.model, "text": self.text, "split": self.split, **self.evaluation.as_dict()}


@dataclass(frozen=True)
class AgainstResult:
    """Where a model loses to another on a text.

    Attributes:
        model, against: the two models, as requested.
        text: name of the text's file.
        split: the part of the text: all, train or held-out.
        comparison: bits per byte of both models, and the words that cost most.
    """

    model: str
    against: str
    text: str
    split: str
    comparison: Comparison

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values for `--json`."""
        names = {"model": self.model, "against": self.against, "text": self.text, "split": self.split}
        return {**names, **self.comparison.as_dict()}


@dataclass(frozen=True)
class TasksResult:
    """Accuracy of a model on tasks.

    Attributes:
        model: the model, as requested.
        num_fewshot: requested number of examples before each question; None for the tasks' own.
        report: results of all tasks.
    """

    model: str
    num_fewshot: int | None
    report: TaskReport

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values for `--json`."""
        return {"model": self.model, "num_fewshot": self.num_fewshot, **self.report.as_dict()}


def check_options(options: EvalOptions) -> None:
    """Check the options before the model is opened.

    Raises:
        UsageError: options that exclude each other, or no task.
        ToolUnavailableError: lm_eval is not installed.
        OutputExistsError, StorageError: a file to write already exists, or its folder does not exist.
    """
    if (options.text is None) == (options.tasks is None):
        raise UsageError("give either --text or --tasks", "see compact-edge eval --help")
    for name in _TASK_ONLY if options.tasks is None else _TEXT_ONLY:
        if getattr(options, name) not in (None, "all"):
            raise UsageError(f"{_flag(name)} is for --{'tasks' if options.tasks is None else 'text'}", "leave it out")
    for name in _AGAINST_ONLY:
        if options.against is None and getattr(options, name) is not None:
            raise UsageError(f"{_flag(name)} is for --against", "name the model to compare with")
    if options.tasks is not None:
        _check_tasks(options)
    elif options.save_tokens is not None:
        from compact_edge.tasks.against import check_tokens_file

        check_tokens_file(options.save_tokens)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _check_tasks(options: EvalOptions) -> None:
    from compact_edge.output import check_new_file
    from compact_edge.tasks.evaluate import require_lm_eval

    require_lm_eval()
    if not options.task_names:
        raise UsageError("--tasks names no task", "name some, as in --tasks arc_easy,piqa")
    if options.items is not None:
        check_new_file(options.items, "--items")


def score(options: EvalOptions, progress: Progress) -> TextResult | AgainstResult | TasksResult:
    """Score a model on a text or on tasks. Write the file of `options.items`, but not that of `options.save_tokens`.

    Raises:
        CompactEdgeError: what `check_options` raises, or the model or the text cannot be read.
    """
    check_options(options)
    if options.text is None:
        return _score_tasks(options, progress)
    content = _content(options, options.text)
    if options.against is None:
        evaluation = _score_text(options, content, progress)
        return TextResult(options.model, options.text.name, options.split, evaluation)
    comparison = _compare(options, options.against, content, progress)
    return AgainstResult(options.model, options.against, options.text.name, options.split, comparison)


def save_words(options: EvalOptions, result: AgainstResult, progress: Progress) -> None:
    """Write the file of `options.save_tokens`, if it was requested.

    Raises:
        StorageError, DiskFullError: the file cannot be written.
    """
    if options.save_tokens is not None:
        from compact_edge.tasks.against import save_tokens

        save_tokens(options.save_tokens, result.comparison, progress)


def _content(options: EvalOptions, text: Path) -> str:
    from compact.forward.evaluate import read_text

    content = read_text(text, split=options.split)
    if options.max_bytes is None:
        return content
    return content.encode("utf-8")[: options.max_bytes].decode("utf-8", "ignore")


def _score_text(options: EvalOptions, content: str, progress: Progress) -> Evaluation:
    from compact.base.cache import open_cache
    from compact.base.devices import default_threads
    from compact.forward.evaluate import evaluate_checkpoint
    from compact.sources.model_source import open_source
    from exporters.opened import named_artifact

    window = options.window
    artifact = named_artifact(options.model)
    if artifact is not None:
        threads = options.threads or default_threads()
        return artifact.score(content, threads=threads, window=window, progress=progress)
    with open_cache() as cache:
        source = open_source(options.model, cache, progress)
        return evaluate_checkpoint(
            source.directory, content, window=window, device=options.device, dtype="float32", progress=progress
        )


def _compare(options: EvalOptions, against: str, content: str, progress: Progress) -> Comparison:
    from compact.base.cache import open_cache
    from compact.base.devices import default_threads
    from compact_edge.tasks.against import N_WORDS, compare

    with open_cache() as cache:
        return compare(
            options.model,
            against,
            content,
            n_words=options.words or N_WORDS,
            window=options.window,
            device=options.device,
            threads=options.threads or default_threads(),
            cache=cache,
            progress=progress,
        )


def _score_tasks(options: EvalOptions, progress: Progress) -> TasksResult:
    from compact.base.cache import open_cache
    from compact_edge.tasks.evaluate import evaluate_tasks, write_items
    from exporters.task_runtime import BATCH_SIZE

    batch_size = options.batch_size or BATCH_SIZE
    with open_cache() as cache, _task_runtime(options, batch_size, cache, progress) as runtime:
        report = evaluate_tasks(
            runtime,
            options.task_names,
            include_path=options.include_path,
            limit=options.limit,
            num_fewshot=options.num_fewshot,
            batch_size=batch_size,
            keep_items=options.items is not None,
            progress=progress,
        )
    if options.items is not None:
        write_items(options.items, report)
    return TasksResult(options.model, options.num_fewshot, report)


@contextmanager
def _task_runtime(options: EvalOptions, batch_size: int, cache: Cache, progress: Progress) -> Iterator[Runtime]:
    from compact.base.devices import default_threads
    from exporters.opened import named_artifact

    artifact = named_artifact(options.model)
    runtime: Runtime
    if artifact is not None:
        runtime = artifact.open_for_tasks(threads=options.threads or default_threads(), batch_size=batch_size)
    else:
        from compact.sources.model_source import open_source
        from compact_edge.tasks.checkpoint import CheckpointRuntime

        source = open_source(options.model, cache, progress)
        runtime = CheckpointRuntime(source.directory, device=options.device, batch_size=batch_size)
    try:
        yield runtime
    finally:
        runtime.close()
