"""Runs a whole release: first the plans, then their cells, in child processes.

Finished cells are in the cache, under the hash of all their inputs. So an interrupted run resumes where it stopped, and
after a change in release.toml only the affected cells are made.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compact.base.cache import Cache, open_cache
from compact.base.devices import default_threads
from compact.base.errors import CompactEdgeError, OutputExistsError
from compact.base.files import SUMS, read_json_object, sha256_file, sha256_json
from compact.base.progress import Progress, Task
from compact.sources.model_source import ModelSource, open_source
from compact_edge.output import check_output, existing
from compact_edge.packages import installed_versions
from compact_edge.release.cells import SCHEMA, Cells, PlanCell
from compact_edge.release.gather import Gathered, gather
from compact_edge.release.jobs import Job, run_jobs
from compact_edge.release.make import plan_inputs, published_name
from compact_edge.release.manifest import BenchSettings
from compact_edge.release.record import Record, finished
from compact_edge.release.resolved import ResolvedModel, resolve_model
from compact_edge.release.verify import MANIFEST
from compact_edge.version import __version__
from exporters.gate import MEMORY_SHARE
from exporters.registry import format_named

# Increase this when the bytes of a cell's folder change for equal inputs. Older folders are then not used.
_VERSION = 1
_DECIDING = ("numpy", "torch", "transformers", "tokenizers", "gguf", "llama-cpp-python")
# Memory of an interpreter with torch and a runtime, before it loads a model.
_BASE_BYTES = 800_000_000
_FLOAT32 = 4


@dataclass(frozen=True)
class RunOptions:
    """The options of a run.

    Attributes:
        out: the directory to publish.
        jobs: maximum number of parallel cells.
        force: replace an earlier output.
        bench: measure the files whose targets match this machine.
        threads: threads per cell; None divides the cores among the cells.
    """

    out: Path
    jobs: int = 1
    force: bool = False
    bench: bool = False
    threads: int | None = None


@dataclass
class _State:
    """The state of all plans and cells during a run."""

    sources: dict[int, tuple[ModelSource, ResolvedModel]] = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    reused: list[str] = field(default_factory=list)
    folders: dict[str, Path] = field(default_factory=dict)


def run(cells: Cells, options: RunOptions, progress: Progress) -> tuple[Gathered, list[str]]:
    """Make a release.

    Returns:
        The published release, and the ids of plans and cells that an earlier run had finished.

    Raises:
        OutputExistsError, UsageError: the options are invalid. Raised before any work starts.
        CompactEdgeError: publishing failed. A failed cell raises nothing; its row gives the reason.
    """
    return _Run(cells, options, progress).run()


class _Run:
    def __init__(self, cells: Cells, options: RunOptions, progress: Progress) -> None:
        self._cells = cells
        self._options = options
        self._progress = progress
        self._state = _State()
        cores = default_threads()
        self._threads = options.threads or max(1, cores // options.jobs)

    def run(self) -> tuple[Gathered, list[str]]:
        options, cells, state = self._options, self._cells, self._state
        entries = cells.release.models
        inputs = existing(cells.release.path, *(e.opened for e in entries), *(p for e in entries for p in e.files))
        replace = options.force or _is_incomplete(options.out)
        check_output(options.out, force=replace, inputs=inputs)
        with open_cache() as cache:
            self._open_sources(cache)
            total = len(cells.plans) + len(cells.cells)
            with self._progress.task(f"release {cells.release.path.name}", total, "cells") as task:
                jobs = [job for plan in cells.plans for job in self._plan(plan, cache, task)]
                run_jobs(
                    jobs,
                    options.jobs,
                    on_end=lambda job, reason: self._ended(job, reason, cache, task),
                    note=self._progress.note,
                )
            reports, unmeasured = self._measure(cache) if options.bench else ([], {})
            made = [state.records[cell.id] for cell in cells.cells if cell.id in state.records]
            gathered = gather(
                cells.description,
                made,
                reports,
                options.out,
                force=replace,
                failed=state.failed,
                unmeasured=unmeasured,
            )
        return gathered, state.reused

    def _open_sources(self, cache: Cache) -> None:
        for number, entry in enumerate(self._cells.release.models):
            try:
                source = open_source(entry.opened, cache, self._progress)
                self._state.sources[number] = (source, resolve_model(self._cells, source))
            except CompactEdgeError as error:
                for plan in self._cells.plans:
                    if plan.entry is entry:
                        self._state.failed[plan.id] = error.message

    def _source(self, plan: PlanCell) -> tuple[ModelSource, ResolvedModel]:
        return self._state.sources[self._cells.release.models.index(plan.entry)]

    def _plan(self, plan: PlanCell, cache: Cache, task: Task) -> Iterator[Job]:
        """Yield the job of a plan. If the plan is already finished, yield the jobs of its cells."""
        state = self._state
        if plan.id in state.failed:
            self._fail_cells(plan, state.failed[plan.id], task)
            return
        source, resolved = self._source(plan)
        key = {
            "version": [_VERSION, __version__],
            "inputs": plan_inputs(self._cells, plan, resolved),
            "source": source.id,
            "made_with": _versions(_DECIDING),
        }
        folder = cache.path("release-plan", sha256_json(key))
        state.folders[plan.id] = folder
        if (made := finished(folder)) is not None:
            state.records[plan.id] = made
            state.reused.append(plan.id)
            task.advance()
            yield from self._cells_of(plan, made, cache, task)
            return
        words = ("release", str(self._cells.release.path), "--cell", plan.id, "--out", str(folder), "--force")
        yield Job(plan.id, words, _plan_bytes(plan, source))

    def _cells_of(self, plan: PlanCell, made: Record, cache: Cache, task: Task) -> Iterator[Job]:
        state, options = self._state, self._options
        source, resolved = self._source(plan)
        release = self._cells.release
        for cell in (each for each in self._cells.cells if each.plan is plan):
            key = {
                "version": [_VERSION, __version__],
                "plan": dict(made.plan),
                "recipe": dict(cell.recipe),
                "name": published_name(plan, source),
                "place": resolved.name(cell.label) if cell.label in resolved.by_label else None,
                "targets": {name: release.targets[name].as_dict() for name in cell.targets},
                "baseline": [release.baseline, options.bench],
                "eval_text": None if plan.entry.eval_text is None else sha256_file(plan.entry.eval_text),
                "made_with": _versions((*_DECIDING, *format_named(cell.format).packages)),
            }
            folder = cache.path("release-cell", sha256_json(key))
            state.folders[cell.id] = folder
            if (known := finished(folder)) is not None:
                state.records[cell.id] = known
                state.reused.append(cell.id)
                task.advance()
                continue
            words = ["release", str(release.path), "--cell", cell.id, "--plan", str(made.folder), "--out", str(folder)]
            words += ["--force", "--no-bench", "--threads", str(self._threads)]
            words += ["--with-baseline"] if options.bench else []
            yield Job(cell.id, tuple(words), _cell_bytes(source), self._threads)

    def _ended(self, job: Job, reason: str | None, cache: Cache, task: Task) -> Iterable[Job]:
        state = self._state
        task.advance()
        made = finished(state.folders[job.id])
        plan = next((each for each in self._cells.plans if each.id == job.id), None)
        if made is None:
            state.failed[job.id] = reason or "its folder is damaged"
            if plan is not None:
                self._fail_cells(plan, state.failed[job.id], task)
            return []
        # A cell that does not fit some of its targets ends with an error. Its folder is complete and names them.
        state.records[job.id] = made
        return [] if plan is None else list(self._cells_of(plan, made, cache, task))

    def _fail_cells(self, plan: PlanCell, reason: str, task: Task) -> None:
        for cell in self._cells.cells:
            if cell.plan is plan:
                self._state.failed[cell.id] = reason
                task.advance()

    def _measure(self, cache: Cache) -> tuple[list[Path], dict[str, str]]:
        """Measure the cells whose targets match this machine, one at a time.

        Returns the folders of the reports, and cell id -> reason for cells that could not be measured.
        """
        from compact_edge.release.measure import local_isa, measured_here

        release, state = self._cells.release, self._state
        settings = release.bench or BenchSettings()
        reports: dict[str, Path] = {}
        jobs: list[Job] = []
        for cell in self._cells.cells:
            target = measured_here(release, cell) if cell.id in state.records else None
            if target is None:
                continue
            made = state.records[cell.id]
            key = {
                "version": [_VERSION, __version__],
                "cell": dict(made.sums),
                "device": [platform.node(), *local_isa()],
                "settings": [settings.repetitions, settings.seconds, self._options.threads],
            }
            folder = cache.path("release-report", sha256_json(key))
            reports[cell.id] = folder
            if (folder / SUMS).is_file():
                continue
            words = ["bench", str(made.folder), "--out", str(folder), "--force"]
            words += ["--target", release.target_words[target]]
            words += [] if settings.repetitions is None else ["--repetitions", str(settings.repetitions)]
            words += [] if settings.seconds is None else ["--seconds", f"{settings.seconds:g}"]
            words += [] if self._options.threads is None else ["--threads", str(self._options.threads)]
            jobs.append(Job(cell.id, tuple(words), 0, alone=True))
        unmeasured: dict[str, str] = {}
        if jobs:
            with self._progress.task("bench", len(jobs), "cells") as task:

                def ended(job: Job, reason: str | None) -> list[Job]:
                    task.advance()
                    if reason is not None and not (reports[job.id] / SUMS).is_file():
                        unmeasured[job.id] = reason
                    return []

                run_jobs(jobs, 1, on_end=ended, note=self._progress.note)
        return [folder for cell, folder in reports.items() if cell not in unmeasured], unmeasured


def _is_incomplete(out: Path) -> bool:
    """Return whether `out` is an earlier release with missing cells, which the same command completes."""
    if not (out / SUMS).is_file():
        return False
    try:
        manifest: dict[str, Any] = read_json_object(out / MANIFEST)
    except CompactEdgeError:
        return False
    return manifest.get("schema") == SCHEMA and bool(manifest.get("missing"))


def _plan_bytes(plan: PlanCell, source: ModelSource) -> int:
    """Estimate the memory of a plan in bytes: two models, or with training two models and the training state."""
    copies = 6 if "recover" in plan.entry.values else 2
    return _BASE_BYTES + copies * _FLOAT32 * source.n_params


def _cell_bytes(source: ModelSource) -> int:
    """Estimate the memory of a cell in bytes, so that its gate has room for the float32 model and the file."""
    return _BASE_BYTES + int((_FLOAT32 + 1) * source.n_params / MEMORY_SHARE)


def _versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the processor type, and the package versions that affect a cell's bytes and figures."""
    return {"machine": platform.machine(), **installed_versions(packages)}


def default_out(cells: Cells) -> Path:
    """Return the default output directory of a release. Raises OutputExistsError if it is a file."""
    out = Path(cells.release.path.stem)
    if out.is_file():
        raise OutputExistsError(f"{out}: is a file", "give another --out")
    return out
