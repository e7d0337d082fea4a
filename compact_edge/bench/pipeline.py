"""The pipeline of `compact-edge bench`: two artifacts, one device, raw records, a report."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compact.base.cache import Cache, open_cache
from compact.base.errors import GateError, ToolUnavailableError, UsageError
from compact.base.files import publish, write_sums
from compact.base.progress import Progress
from compact_edge.bench.plan import BenchOptions, BenchPlan, plan_bench, threads_of, unlike, with_bits_per_byte
from compact_edge.version import __version__
from runtime_bench.engines.base import ALL_LAYERS, Engine, EngineContext, PlacedArtifact, Settings
from runtime_bench.engines.registry import ChosenEngine, choose_engines, users_of
from runtime_bench.measuring.measure import BoundSide, Outcome, Workload, measure, prepare
from runtime_bench.measuring.prompts import reference_text
from runtime_bench.records import SIDES, Prompt, RunFacts, Side, Subject
from runtime_bench.transports.base import DeviceUnavailableError, Transport

if TYPE_CHECKING:
    from runtime_bench.device.facts import DeviceFacts


@dataclass(frozen=True)
class BenchResult:
    """Result of a run: the content of report.json, and the output directory."""

    document: Mapping[str, Any]
    out: Path


class BenchIncompleteError(ToolUnavailableError):
    """Raised when a run is partial or measured nothing. The report was published."""

    def __init__(self, message: str, hint: str, result: BenchResult) -> None:
        super().__init__(message, hint)
        self.result = result


class OverBudgetError(GateError):
    """Raised when the pruned artifact exceeds a budget of its target. The report was published."""

    def __init__(self, message: str, hint: str, result: BenchResult) -> None:
        super().__init__(message, hint)
        self.result = result


def bench(options: BenchOptions, progress: Progress) -> BenchResult:
    """Measure a pair and publish its report.

    Raises:
        UsageError, DataError: the input is invalid; nothing is published.
        BenchIncompleteError: nothing or only a part was measured; the report is published.
        OverBudgetError: a budget is exceeded, with `fail_over_budget`; the report is published.
        CompactEdgeError: another error of a stage; nothing is published.
    """
    from runtime_bench.report.write import write_report

    plan = plan_bench(options)
    with open_cache() as cache:
        facts, outcome = _on_device(options, plan, cache, progress)
    with publish(plan.out, force=options.force) as work:
        document = write_report(work, facts, outcome.samples)
        write_sums(work)
    result = BenchResult(document, plan.out)
    if facts.status != "complete":
        what = "nothing was measured" if facts.status == "not measured" else "the run is partial"
        raise BenchIncompleteError(f"{what}: {facts.reason}", f"see the report: {plan.out}", result)
    over = [str(budget["name"]) for budget in document["budgets"] if budget["passed"] is False]
    if options.fail_over_budget and over:
        message = f"over budget of target {facts.target}: {', '.join(over)}"
        raise OverBudgetError(message, f"see {plan.out / 'report.md'}", result)
    return result


def _on_device(options: BenchOptions, plan: BenchPlan, cache: Cache, progress: Progress) -> tuple[RunFacts, Outcome]:
    from runtime_bench.device.facts import read_facts
    from runtime_bench.transports.registry import open_transport

    with open_transport(options.device, progress=progress) as transport:
        device = read_facts(transport)
        context = EngineContext(transport, device, cache, engine_dir=options.engine_dir, python=options.device_python)
        engines = choose_engines(plan.artifacts, options.engine, context)
        _refuse_unused(options, engines)
        threads = threads_of(options, plan, device, local=transport.spec == "local")
        names = {side: engine.kind.name for side, engine in engines.items()}
        differences = unlike(plan.artifacts, names, threads)
        if differences and not options.allow_unlike:
            raise UsageError(
                f"the two artifacts differ in {'; '.join(differences)}",
                "compare artifacts that differ in nothing but the pruning, or add --allow-unlike: the report's title "
                "then says so",
            )
        # This takes minutes on this machine, so it comes after the checks.
        setup = _Setup(options, with_bits_per_byte(options, plan, progress), transport, engines, threads)
        unmeasured = _facts(setup, device, differences)
        try:
            return _run(setup, unmeasured, progress)
        except DeviceUnavailableError as error:
            # The report says that the device has no engine, or that it was disconnected.
            return replace(unmeasured, status="not measured", reason=error.message), Outcome()
        finally:
            if options.clean_device:
                with contextlib.suppress(DeviceUnavailableError):
                    transport.clean()


@dataclass(frozen=True)
class _Setup:
    """The engine and the number of threads of each side. They are known when the device is open."""

    options: BenchOptions
    plan: BenchPlan
    transport: Transport
    engines: Mapping[Side, ChosenEngine]
    threads: Mapping[Side, int]


def _run(setup: _Setup, unmeasured: RunFacts, progress: Progress) -> tuple[RunFacts, Outcome]:
    """Place, prepare and measure. Raises DeviceUnavailableError if the device fails before the first record."""
    options = setup.options
    sides = _bind(setup)
    workload = prepare(
        sides,
        depths=options.depths,
        n_tokens=options.n_tokens,
        reference=reference_text(setup.plan.conversations),
        progress=progress,
    )
    outcome = measure(
        setup.transport,
        sides,
        workload,
        repetitions=options.repetitions,
        seconds=options.seconds,
        progress=progress,
    )
    return _measured(unmeasured, setup, sides["pruned"].engine, workload, outcome), outcome


def _refuse_unused(options: BenchOptions, engines: Mapping[Side, ChosenEngine]) -> None:
    """Refuse an option that neither engine of this run uses. Raises UsageError."""
    given = {
        "--engine-dir": options.engine_dir is not None,
        "--device-python": options.device_python is not None,
        "--gpu-layers": options.gpu_layers != 0,
        "--execution-provider": options.execution_provider is not None,
    }
    used = frozenset[str]().union(*(engine.kind.options for engine in engines.values()))
    for option in (option for option, is_given in given.items() if is_given and option not in used):
        names = " and ".join(sorted({engine.kind.name for engine in engines.values()}))
        raise UsageError(f"{option} is for {', '.join(users_of(option))}; this run uses {names}", "leave it out")


def _bind(setup: _Setup) -> dict[Side, BoundSide]:
    """Place engines and artifacts on the device."""
    options, plan = setup.options, setup.plan
    placed: dict[str, Engine] = {}  # one engine of each name for both sides
    sides: dict[Side, BoundSide] = {}
    for side in SIDES:
        chosen = setup.engines[side]
        if chosen.kind.name not in placed:
            placed[chosen.kind.name] = chosen.place()
        model = PlacedArtifact(setup.transport.place_folder(plan.artifacts[side].files), plan.artifacts[side])
        settings = Settings(setup.threads[side], plan.context, options.gpu_layers, plan.provider(options))
        sides[side] = BoundSide(side, placed[chosen.kind.name], model, settings, plan.texts[side])
    return sides


def _facts(setup: _Setup, device: DeviceFacts, differences: Sequence[str]) -> RunFacts:
    """Return the facts that are known before the first run."""
    options, plan, threads = setup.options, setup.plan, setup.threads
    names = {side: engine.kind.name for side, engine in setup.engines.items()}
    settings: dict[str, Any] = {
        "batch_size": 1,
        "threads": threads["pruned"],
        "context": plan.context,
        "new_tokens": options.n_tokens,
        "gpu_layers": "all" if options.gpu_layers == ALL_LAYERS else options.gpu_layers,
        "sampling": "greedy",
    }
    if any("--execution-provider" in engine.kind.options for engine in setup.engines.values()):
        settings["execution_provider"] = plan.provider(options)
        del settings["gpu_layers"]
    return RunFacts(
        status="not measured",
        reason="",
        unlike=tuple(differences),
        device={"model": _device_name(device), **device.as_dict()},
        device_spec=setup.transport.spec,
        emulated=setup.transport.emulated,
        engine={"name": names["pruned"]},
        settings=settings,
        subjects={side: _subject(plan, side, threads[side], names[side]) for side in SIDES},
        prompts=tuple(
            Prompt(
                name,
                text,
                dict.fromkeys(SIDES, 0),
                {side: len(plan.texts[side][name]) for side in SIDES},
                "not measured",
            )
            for name, text in plan.texts["pruned"].items()
        ),
        depths=(),
        reference_characters=len(reference_text(plan.conversations)),
        reference_tokens=dict.fromkeys(SIDES, 0),
        bits_per_byte_text=plan.bits_per_byte_text,
        target=None if plan.profile is None else plan.profile.name,
        budgets=plan.budgets(),
        notes=plan.notes,
        command=options.command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        tool_version=__version__,
    )


def _device_name(device: DeviceFacts) -> str | None:
    """Name of the device: manufacturer and model of a phone, otherwise the processor."""
    phone = [device.android[key] for key in ("manufacturer", "model") if key in device.android]
    return " ".join(phone) or device.cpu_model


def _measured(facts: RunFacts, setup: _Setup, engine: Engine, workload: Workload, outcome: Outcome) -> RunFacts:
    """Return the facts, with what the engine of the pruned side reported and how the run ended."""
    figures = workload.figures["pruned"]
    status: Literal["complete", "partial", "not measured"] = "complete"
    if outcome.lost:
        status = "partial" if outcome.samples else "not measured"
    notes = [*facts.notes, *workload.notes, *outcome.notes, *setup.engines["pruned"].kind.notes]
    if setup.options.gpu_layers and not any(sample.device_memory_bytes for sample in outcome.samples):
        notes.append("layers should be offloaded, but the engine reports no memory on an accelerator")
    return replace(
        facts,
        status=status,
        reason=outcome.lost,
        engine={**facts.engine, **engine.facts, **figures.engine},
        settings={**facts.settings, **figures.settings, "load_time_from": engine.times_load_from},
        prompts=workload.prompts,
        depths=tuple(workload.depths),
        reference_tokens=workload.reference_tokens,
        notes=tuple(notes),
    )


def _subject(plan: BenchPlan, side: Side, threads: int, engine: str) -> Subject:
    artifact = plan.artifacts[side]
    return Subject(
        name=artifact.name,
        format=artifact.format,
        quant=artifact.quant,
        size_bytes=artifact.size_bytes,
        sha256=artifact.sha256,
        bits_per_weight=artifact.bits_per_weight,
        parameters=artifact.parameters,
        bits_per_byte=plan.bits_per_byte.get(side),
        threads=threads,
        engine=engine,
    )
