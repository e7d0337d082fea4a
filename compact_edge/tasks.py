"""Accuracy on tasks of LM-Evaluation-Harness (`lm_eval`): which tasks, what they need, and what came out."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from compact.errors import CompactEdgeError, DataError, ToolUnavailableError, UsageError
from compact.progress import SILENT, Progress
from compact.store import write_bytes
from compact_edge.packages import install_hint
from exporters.task_runtime import BATCH_SIZE, Runtime

# lm_eval's own seed for the draw of few-shot examples.
_FEWSHOT_SEED = 1234
# Resamples for the standard errors that have no closed form (perplexity).
_BOOTSTRAP = 1000


@dataclass(frozen=True)
class Metric:
    """One figure of a task.

    Attributes:
        name: such as `acc`, or `exact_match,strict-match` where a filter of the task is in between.
        value: the figure.
        stderr: its standard error, None where lm_eval knows none.
        higher_is_better: None where lm_eval does not say.
    """

    name: str
    value: float
    stderr: float | None
    higher_is_better: bool | None


@dataclass(frozen=True)
class TaskResult:
    """What a model got in one task or group of tasks.

    Attributes:
        name: the task's.
        version: of its definition.
        num_fewshot: examples before each question, None for a group whose tasks differ.
        n_items: items that were scored.
        metrics: its figures.
    """

    name: str
    version: str | None
    num_fewshot: int | None
    n_items: int
    metrics: tuple[Metric, ...]


@dataclass(frozen=True)
class TaskReport:
    """Results of all tasks.

    Attributes:
        runtime: what scored them.
        lm_eval: version of LM-Evaluation-Harness.
        limit: most items of a task, None for all.
        named: the tasks and groups that were asked for.
        results: of these, and of every task in the groups.
        tokens: tokens that were fed to score answers, what they share counted once.
        items: by task, every item with its answers (only where they were asked for).
    """

    runtime: str
    lm_eval: str
    limit: int | None
    named: tuple[str, ...]
    results: tuple[TaskResult, ...]
    tokens: int
    items: Mapping[str, Sequence[Mapping[str, Any]]]

    def as_dict(self) -> dict[str, Any]:
        """As JSON, without the items."""
        tasks = {}
        for result in self.results:
            entry = asdict(result)
            del entry["name"]
            entry["metrics"] = {metric.pop("name"): metric for metric in entry["metrics"]}
            tasks[result.name] = entry
        return {"runtime": self.runtime, "lm_eval": self.lm_eval, "limit": self.limit, "tasks": tasks}

    def rows(self) -> list[list[str]]:
        """Task, metric, value with standard error, items; of what was asked for."""
        rows = []
        for result in self.results:
            if result.name not in self.named:
                continue
            for metric in result.metrics:
                error = "" if metric.stderr is None else f" ± {_figure(metric.stderr)}"
                rows.append([result.name, metric.name, f"{_figure(metric.value)}{error}", f"{result.n_items:,}"])
        return rows


def write_items(path: Path, report: TaskReport) -> None:
    """Write every item as one line of JSON: its task, question, requests, answers and what each metric says.

    Raises:
        StorageError: it cannot be written.
    """
    lines = (
        json.dumps({"task": task, **item}, default=str, ensure_ascii=False) + "\n"
        for task, items in report.items.items()
        for item in items
    )
    write_bytes(path, "".join(lines).encode())


def require_lm_eval() -> None:
    """Raise ToolUnavailableError where lm_eval is not installed."""
    if find_spec("lm_eval") is None:
        raise ToolUnavailableError("the package lm_eval is not installed", install_hint("eval"))


def evaluate_tasks(
    runtime: Runtime,
    names: Sequence[str],
    *,
    include_path: Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = BATCH_SIZE,
    keep_items: bool = False,
    progress: Progress = SILENT,
) -> TaskReport:
    """Score a model on tasks.

    Args:
        runtime: the model.
        names: tasks, groups or tags of lm_eval or of `include_path`.
        include_path: a folder of task files (yaml). Python functions that they name are run.
        limit: most items of a task, the first ones.
        num_fewshot: examples before each question, in place of the task's own number (a task that fixes 0 keeps it).
        batch_size: most sequences at a time, as the runtime was opened with.
        keep_items: keep every item's answers.
        progress: told of the work.

    Raises:
        ToolUnavailableError: lm_eval is absent.
        UsageError: an unknown task, or one that this command does not run.
        DataError: a task that cannot be loaded, or an answer without tokens.
        CompactEdgeError: what the runtime raises.
    """
    require_lm_eval()
    with _quiet(), _random_state():
        from lm_eval.evaluator import evaluate

        from compact_edge.task_models import TaskModel

        tasks = _load(names, include_path)
        for name, task in tasks["tasks"].items():
            _set_up(name, task, num_fewshot)
        model = TaskModel(runtime, batch_size=batch_size, progress=progress)
        try:
            raw = evaluate(model, tasks, limit=limit, bootstrap_iters=_BOOTSTRAP, log_samples=keep_items)
        except (CompactEdgeError, MemoryError):
            raise
        except Exception as error:  # templates, metrics and functions of a task are anybody's code
            if error is model.failure:
                raise
            raise DataError(
                f"tasks {', '.join(names)}: {_one_line(error)}", "the error is in a task's files"
            ) from error
    items = raw.get("samples") or {}
    return TaskReport(
        runtime=runtime.name,
        lm_eval=version("lm_eval"),
        limit=limit,
        named=_named(names, tasks),
        results=tuple(_results(raw)),
        tokens=model.tokens_scored,
        items={name: items[name] for name in sorted(items)},
    )


def _load(names: Sequence[str], include_path: Path | None) -> Any:
    from lm_eval.tasks import TaskManager

    if include_path is not None and not include_path.is_dir():
        raise UsageError(f"--include-path {include_path}: no such folder")
    # lm_eval reads thousands of files to know its own tasks.
    local = TaskManager(include_path=str(include_path), include_defaults=False) if include_path else None
    if local is not None and set(names) <= set(local.all_tasks):
        with contextlib.suppress(KeyError):  # a group there may name tasks of lm_eval
            return _loaded(local, names)
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    known = manager.all_tasks
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "see `lm_eval ls tasks`; --include-path adds yours"
            raise UsageError(f"no task {name!r}", hint)
    return _loaded(manager, names)


def _loaded(manager: Any, names: Sequence[str]) -> Any:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    from compact.hub_errors import offline_error, translate

    try:
        return manager.load(list(names))
    except KeyError:
        raise
    except Exception as error:  # reading a data set can fail in as many ways as there are tasks
        what = f"the data of {', '.join(names)}"
        if _is_of_the_hub(error):
            # `datasets` says only in words why it could not reach the Hub.
            ours = offline_error(what, None, "dataset") if HF_HUB_OFFLINE else translate(error, what, None, "dataset")
            if ours is not None:
                raise ours from error
        raise DataError(
            f"{what} cannot be read ({_one_line(error)})", "check the task's files and the network"
        ) from error


def _is_of_the_hub(error: Exception) -> bool:
    libraries = ("huggingface_hub", "datasets", "httpx", "httpx2", "requests")
    return isinstance(error, ConnectionError) or type(error).__module__.partition(".")[0] in libraries


def _set_up(name: str, task: Any, num_fewshot: int | None) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise UsageError(f"the task {name} runs code that a model wrote", "choose another task")
    if getattr(task, "MULTIMODAL", False):
        raise UsageError(f"the task {name} has pictures or sound in it", "choose a task of text")
    own = task.get_config("num_fewshot")
    if own is None or (num_fewshot is not None and own != 0):
        task.set_config(key="num_fewshot", value=num_fewshot or 0)
    task.set_fewshot_seed(seed=_FEWSHOT_SEED)


def _named(names: Sequence[str], tasks: Any) -> tuple[str, ...]:
    """What was asked for, a tag as its tasks."""
    known = {*tasks["tasks"], *tasks.get("groups", {})}
    if set(names) <= known:
        return tuple(names)
    in_groups = {child for children in tasks.get("group_map", {}).values() for child in children}
    return tuple(name for name in known if name in names or name not in in_groups)


def _results(raw: Mapping[str, Any]) -> Iterator[TaskResult]:
    children = raw.get("group_subtasks", {})
    counts = raw.get("n-samples", {})

    def count(name: str) -> int:
        if name in counts:
            return int(counts[name]["effective"])
        return sum(count(child) for child in children.get(name, ()))

    for name, figures in {**raw["results"], **raw.get("groups", {})}.items():
        metrics = []
        for key, value in figures.items():
            metric, comma, rule = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            error = figures.get(f"{metric}_stderr,{rule}")
            better = raw.get("higher_is_better", {}).get(name, {}).get(metric)
            full = metric if rule == "none" else key
            metrics.append(Metric(full, float(value), float(error) if _is_number(error) else None, better))
        if metrics:
            number = raw.get("versions", {}).get(name)
            shots = raw.get("n-shot", {}).get(name)
            yield TaskResult(name, None if number is None else str(number), shots, count(name), tuple(metrics))


def _figure(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and value == value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what lm_eval logs, warns of and prints: stdout is for results."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _random_state() -> Iterator[None]:
    """Draw alike every time: some tasks shuffle answers with the process's own generators."""
    import numpy as np

    python, legacy = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(_FEWSHOT_SEED)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
