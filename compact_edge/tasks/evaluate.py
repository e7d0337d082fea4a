"""Accuracy on tasks of LM-Evaluation-Harness (`lm_eval`): loads tasks, runs them, and collects the results."""

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

from compact.base.errors import CompactEdgeError, DataError, ToolUnavailableError, UsageError
from compact.base.files import write_bytes
from compact.base.progress import SILENT, Progress
from compact_edge.packages import install_hint
from exporters.task_runtime import BATCH_SIZE, Runtime

# lm_eval's default seed for drawing few-shot examples.
_FEWSHOT_SEED = 1234
# Bootstrap samples for standard errors without a closed form (perplexity).
_BOOTSTRAP = 1000


@dataclass(frozen=True)
class Metric:
    """One metric of a task.

    Attributes:
        name: for example `acc`, or `exact_match,strict-match` if the task applies a filter.
        value: the value.
        stderr: standard error; None if lm_eval gives none.
        higher_is_better: None if lm_eval does not define it.
    """

    name: str
    value: float
    stderr: float | None
    higher_is_better: bool | None


@dataclass(frozen=True)
class TaskResult:
    """Result of a model in one task or group of tasks.

    Attributes:
        name: name of the task.
        version: version of the task's definition.
        num_fewshot: examples before each question; None for a group whose tasks differ.
        n_items: number of scored items.
        metrics: metrics of the task.
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
        runtime: name of the runtime.
        lm_eval: version of LM-Evaluation-Harness.
        limit: maximum items per task; None for all.
        named: requested tasks and groups.
        results: results of these, and of every task in the groups.
        tokens: input tokens for scoring answers. A shared prefix counts once.
        items: every item with its answers, by task; empty unless requested.
    """

    runtime: str
    lm_eval: str
    limit: int | None
    named: tuple[str, ...]
    results: tuple[TaskResult, ...]
    tokens: int
    items: Mapping[str, Sequence[Mapping[str, Any]]]

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values without the items."""
        tasks = {}
        for result in self.results:
            entry = asdict(result)
            del entry["name"]
            entry["metrics"] = {metric.pop("name"): metric for metric in entry["metrics"]}
            tasks[result.name] = entry
        return {"runtime": self.runtime, "lm_eval": self.lm_eval, "limit": self.limit, "tasks": tasks}

    def rows(self) -> list[list[str]]:
        """Return rows of the requested tasks and groups: task, metric, value with standard error, items."""
        rows = []
        for result in self.results:
            if result.name not in self.named:
                continue
            for metric in result.metrics:
                error = "" if metric.stderr is None else f" ± {_figure(metric.stderr)}"
                rows.append([result.name, metric.name, f"{_figure(metric.value)}{error}", f"{result.n_items:,}"])
        return rows


def write_items(path: Path, report: TaskReport) -> None:
    """Write every item as one line of JSON: task, question, requests, answers and metrics.

    Raises:
        StorageError: the file cannot be written.
    """
    lines = (
        json.dumps({"task": task, **item}, default=str, ensure_ascii=False) + "\n"
        for task, items in report.items.items()
        for item in items
    )
    write_bytes(path, "".join(lines).encode())


def require_lm_eval() -> None:
    """Raise ToolUnavailableError if lm_eval is not installed."""
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
        include_path: a folder of task files (YAML). Python functions that they refer to are run.
        limit: use only the first `limit` items of each task.
        num_fewshot: examples before each question. Replaces the task's number, unless that is fixed to 0.
        batch_size: maximum sequences at a time, the same as for the runtime.
        keep_items: keep every item's answers.
        progress: shows the work.

    Raises:
        ToolUnavailableError: lm_eval is not installed.
        UsageError: a task is unknown or not supported.
        DataError: a task cannot be loaded, or an answer has no tokens.
        CompactEdgeError: the runtime failed.
    """
    require_lm_eval()
    with _quiet(), _random_state():
        from lm_eval.evaluator import evaluate

        from compact_edge.tasks.lm_eval_model import TaskModel

        tasks = _load(names, include_path)
        for name, task in tasks["tasks"].items():
            _set_up(name, task, num_fewshot)
        model = TaskModel(runtime, batch_size=batch_size, progress=progress)
        try:
            raw = evaluate(model, tasks, limit=limit, bootstrap_iters=_BOOTSTRAP, log_samples=keep_items)
        except (CompactEdgeError, MemoryError):
            raise
        except Exception as error:  # templates, metrics and functions of a task are third-party code
            if error is model.failure:
                raise
            raise DataError(f"tasks {', '.join(names)}: {_one_line(error)}", "check the files of the task") from error
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
        raise UsageError(f"--include-path {include_path}: the folder does not exist", "correct the path")
    # Try the local tasks first, because lm_eval reads thousands of files to list its own.
    local = TaskManager(include_path=str(include_path), include_defaults=False) if include_path else None
    if local is not None and set(names) <= set(local.all_tasks):
        with contextlib.suppress(KeyError):  # a local group may refer to tasks of lm_eval
            return _loaded(local, names)
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    known = manager.all_tasks
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=3)
            hint = (
                f"did you mean {' or '.join(near)}?"
                if near
                else "`lm_eval ls tasks` lists tasks; --include-path adds your own"
            )
            raise UsageError(f"the task {name!r} does not exist", hint)
    return _loaded(manager, names)


def _loaded(manager: Any, names: Sequence[str]) -> Any:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    from compact.sources.hub_errors import offline_error, translate

    try:
        return manager.load(list(names))
    except KeyError:
        raise
    except Exception as error:  # reading a data set can fail in many ways
        what = f"the data of {', '.join(names)}"
        if _is_of_the_hub(error):
            # `datasets` gives the reason only as text, so translate the error.
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
        raise UsageError(
            f"the task {name} runs code written by the model, which is not supported", "choose another task"
        )
    if getattr(task, "MULTIMODAL", False):
        raise UsageError(f"the task {name} uses images or sound", "choose a text task")
    shots = task.get_config("num_fewshot")
    if shots is None or (num_fewshot is not None and shots != 0):
        task.set_config(key="num_fewshot", value=num_fewshot or 0)
    task.set_fewshot_seed(seed=_FEWSHOT_SEED)


def _named(names: Sequence[str], tasks: Any) -> tuple[str, ...]:
    """Return the requested tasks and groups. A tag becomes its tasks."""
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
    """Suppress logs and output of lm_eval, because stdout is for results."""
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
    """Set fixed seeds, then restore the state. Some tasks shuffle answers with the global random generators."""
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
