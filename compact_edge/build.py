"""The pipeline behind `compact-edge build`: plan, prune, export, check, compare, publish.

Each stage is a function of frozen values and keeps its result in the cache; this module only strings them together.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compact.budget import Sizes
from compact.cache import Cache, open_cache
from compact.calibration import Calibration, read_documents
from compact.decide import decide, pruned_checkpoint, read_decision
from compact.errors import GateError
from compact.evaluate import Evaluation
from compact.evaluation_text import NAME, default_evaluation_text
from compact.languages import LanguageCost, language_costs
from compact.licences import NamingLicence, derived_name, licence_note
from compact.plan import PrunePlan
from compact.progress import Progress
from compact.prune import PruneOptions, calibration_for
from compact.source import TINY, ModelSource, open_source
from compact.store import check_free_space
from compact_edge.build_options import BuildOptions, by_format, check_options, inputs_of, settle_format
from compact_edge.fit import check_fit, largest_of
from compact_edge.formats import Format, Request, parse_quants
from compact_edge.method_report import how_words, plan_words
from compact_edge.output import check_output
from compact_edge.side import Measured, Side, cached_value, evaluate_side, sizes_by_part
from exporters.card import licence_of
from exporters.gate import ParityReport

if TYPE_CHECKING:
    from targets.profile import Profile

# What both models are asked when the user names no prompt.
PROMPT = "Why is the sky blue?"
TINY_PROMPT = "What does `os.path.join` do?"
# Raised when the gate's meaning changes for an equal artifact.
_GATE_VERSION = 4


@dataclass(frozen=True)
class Compared:
    """One side with all that is known of it."""

    side: Side
    parts: dict[str, int]
    evaluation: Evaluation
    artifact_evaluation: Evaluation | None
    parity: ParityReport | None
    measured: Measured | None


@dataclass(frozen=True)
class Outcome:
    """One format of a build.

    Attributes:
        form: the format, its type settled.
        before: the unpruned model, None with `--no-baseline`.
        after: the pruned one.
        notes: what the user should hear of this format.
        files: names of the pruned artifact's files, the one to open first.
    """

    form: Format
    before: Compared | None
    after: Compared
    notes: list[str]
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class BuildResult:
    """What `build` made: one outcome a format, in the order of the targets."""

    source: ModelSource
    plan: PrunePlan
    pruning: PruneOptions
    calibration: Calibration
    outcomes: tuple[Outcome, ...]
    languages: list[LanguageCost]
    eval_name: str
    prompt: str
    compute: Compute
    out: Path
    notes: list[str]
    licence: NamingLicence | None
    reused: list[str]


@dataclass(frozen=True)
class Compute:
    """Where and how the models run: torch device and dtype of the checkpoints, threads of the runtimes."""

    device: str
    dtype: str
    threads: int


def resolve_compute(options: BuildOptions) -> Compute:
    """The options' `auto` made definite."""
    from compact.importance import resolve_device, resolve_dtype

    device = resolve_device(options.prune.device)
    dtype = str(resolve_dtype(options.prune.dtype, device)).removeprefix("torch.")
    return Compute(device, dtype, options.threads or default_threads())


def default_threads() -> int:
    """Physical cores less one: llama.cpp's threads spin while they wait, and one core is for the rest."""
    import psutil

    return max(1, (psutil.cpu_count(logical=False) or os.cpu_count() or 2) - 1)


def build(options: BuildOptions, progress: Progress) -> BuildResult:
    """Run the whole road and publish the result.

    Raises:
        OutputExistsError, UsageError, BudgetError: before any work is done.
        GateError: the parity gate failed, or the artifact is over the target's budget; nothing is published.
        CompactEdgeError: what the stages raise.
    """
    from targets.profile import load_profile

    return build_for(options, by_format([load_profile(name) for name in options.targets]), progress)


def build_for(options: BuildOptions, profiles: Mapping[str, Profile], progress: Progress) -> BuildResult:
    """`build` for profiles that are loaded already, one a format; `options.targets` is not looked at."""
    from compact_edge.publication import publish_build

    quants = parse_quants(options.quants, tuple(profiles))
    check_options(options, profiles, quants)
    with open_cache(enabled=options.use_cache) as cache:
        source = open_source(options.model, cache, progress)
        licence = licence_of(source)
        out = (options.out or Path(f"{derived_name(source.name, licence)}-compact")).absolute()
        check_output(out, force=options.force, inputs=inputs_of(options))
        # Checkpoint, float file and artifact of the pruned model in the cache; the artifacts again at their place.
        check_free_space(cache.root, 6 * source.n_params)
        check_free_space(out.parent, 2 * source.n_params)
        forms = [settle_format(options, profile, quants, source) for profile in profiles.values()]
        result = _run(options, forms, source, licence, out, cache, progress)
        return replace(result, outcomes=publish_build(options, result))


def _run(
    options: BuildOptions,
    forms: Sequence[Format],
    source: ModelSource,
    licence: NamingLicence | None,
    out: Path,
    cache: Cache,
    progress: Progress,
) -> BuildResult:
    notes = [source.note] if source.note else []
    if licence is not None:
        notes.append(licence_note(licence, source.directory, card=True))
        progress.note(notes[-1])
    model_name = derived_name(source.name, licence)
    compute = resolve_compute(options)
    eval_name, text = _evaluation_text(options)
    pruning = replace(options.prune, channel_grid=math.lcm(*(form.channel_grid for form in forms)))
    calibration = calibration_for(source, pruning, cache=cache, progress=progress)
    pruned_name = options.name or f"{model_name}-compact"
    size_of = None
    if pruning.fit_bytes is not None:
        whole = Sizes(source.vocab_size, source.intermediate_size)
        longest = _description(source, 1.0, whole, how_words(pruning.method, learns=pruning.recover is not None))
        size_of = largest_of(forms, source, pruning, pruned_name, longest, cache)
    if options.plan is not None:
        decision = read_decision(options.plan, source)
    else:
        decision = decide(source, pruning, cache, calibration=calibration, size_of=size_of, progress=progress)
    plan = decision.plan
    pruned, pruned_id = pruned_checkpoint(source, decision, cache, progress=progress)
    prompt = options.prompt or (TINY_PROMPT if source.origin == TINY else PROMPT)
    original = Request(
        label="original",
        checkpoint=source.directory,
        checkpoint_id=source.id,
        name=model_name,
        description=f"{source.name}, unpruned",
        published=options.with_baseline,
        source=source,
        plan=plan,
        calibration=calibration,
    )
    smaller = pruned_request(original, pruned, pruned_id, pruned_name)

    def outcome(form: Format) -> Outcome:
        before = None
        baseline_kl = None
        if options.baseline:
            side = _side(original, form, cache, progress)
            baseline_kl = _baseline_kl(form, side, calibration, cache) if options.check else None
            before = _compare(form, side, text, prompt, compute, cache, progress, parity=None)
        side = _side(smaller, form, cache, progress)
        own_notes = form.notes(side.artifact)
        for note in own_notes:
            progress.note(note)
        check_storage(form.profile, side.artifact.size_bytes)
        check_fit(pruning.fit_bytes, side.artifact.size_bytes)
        parity = None
        if options.check:
            parity = _gate(form, side, smaller, baseline_kl, cache, progress)
            parity.require()
        after = _compare(form, side, text, prompt, compute, cache, progress, parity=parity)
        check_memory(form.profile, form, after.measured)
        return Outcome(form, before, after, own_notes)

    return BuildResult(
        source=source,
        plan=plan,
        pruning=pruning,
        calibration=calibration,
        outcomes=tuple(outcome(form) for form in forms),
        languages=language_costs(source.directory, pruned),
        eval_name=eval_name,
        prompt=prompt,
        compute=compute,
        out=out,
        notes=notes,
        licence=licence,
        reused=list(cache.reused),
    )


def pruned_request(original: Request, checkpoint: Path, checkpoint_id: str, name: str) -> Request:
    """The request for the pruned checkpoint's artifact, from that of the unpruned one."""
    source, plan = original.source, original.plan
    removed = 1 - sizes_by_part(checkpoint)["total"] / source.n_params
    return replace(
        original,
        label="pruned",
        checkpoint=checkpoint,
        checkpoint_id=checkpoint_id,
        name=name,
        description=_description(source, removed, plan.sizes, plan_words(plan)),
        published=True,
    )


def _description(source: ModelSource, removed: float, sizes: Sizes, how: tuple[str, str]) -> str:
    """One line for the pruned artifact's metadata."""
    cut, behind = how
    return (
        f"{source.name} with {removed:.1%} of its parameters removed by {cut}: "
        f"vocabulary {source.vocab_size} -> {sizes.vocab_size}, "
        f"FFN {source.intermediate_size} -> {sizes.intermediate_size}{behind}"
    )


def _side(request: Request, form: Format, cache: Cache, progress: Progress) -> Side:
    artifact = form.make(request, cache, progress)
    return Side(request.label, request.checkpoint, request.checkpoint_id, artifact)


def _evaluation_text(options: BuildOptions) -> tuple[str, str]:
    if options.eval_text is None:
        return NAME, default_evaluation_text()
    return options.eval_text.name, "\n\n".join(read_documents(options.eval_text))


def _baseline_kl(form: Format, side: Side, calibration: Calibration, cache: Cache) -> float | None:
    """Mean KL of the unpruned artifact to its float32 model: what the pruned one's is judged by."""
    # Want of memory is not kept: it is no answer on a day with more.
    if not _is_whole(side):
        return None
    key = {
        "version": _GATE_VERSION,
        "artifact": side.artifact.sha256,
        "texts": calibration.id,
        **form.versions(),
    }
    value = cached_value(cache, "baseline-kl", key, lambda: {"mean_kl": form.baseline_kl(side, calibration)})["mean_kl"]
    return None if value is None else float(value)


def _is_whole(side: Side) -> bool:
    """Whether memory suffices to hold the whole model beside its artifact."""
    from exporters.gate import MEMORY_SHARE, fits_in_memory

    return fits_in_memory(side.checkpoint, side.artifact.size_bytes, MEMORY_SHARE)


def _gate(
    form: Format,
    side: Side,
    request: Request,
    baseline_kl: float | None,
    cache: Cache,
    progress: Progress,
) -> ParityReport:
    def check() -> dict[str, Any]:
        return form.check(side, request, baseline_kl, progress).as_dict()

    key = {
        "version": _GATE_VERSION,
        "artifact": side.artifact.sha256,
        "checkpoint": side.checkpoint_id,
        "texts": request.calibration.id,
        "baseline_kl": baseline_kl,
        # A report that short memory made partial is no answer on a day with more.
        "whole": _is_whole(side),
        **form.versions(),
    }
    return ParityReport.from_dict(cached_value(cache, "parity", key, check))


def _compare(
    form: Format,
    side: Side,
    text: str,
    prompt: str,
    compute: Compute,
    cache: Cache,
    progress: Progress,
    *,
    parity: ParityReport | None,
) -> Compared:
    threads = compute.threads
    evaluation, artifact_evaluation = evaluate_side(
        form, side, text, cache, device=compute.device, dtype=compute.dtype, threads=threads, progress=progress
    )
    measured = form.measure(side, text, prompt, threads)
    return Compared(side, sizes_by_part(side.checkpoint), evaluation, artifact_evaluation, parity, measured)


def check_storage(profile: Profile, n_bytes: int) -> None:
    """Raise GateError where an artifact's files are over the target's storage budget."""
    _check_budget(profile, "storage", profile.storage_budget_bytes, n_bytes)


def check_memory(profile: Profile, form: Format, measured: Measured | None) -> None:
    """Raise GateError where the memory measured here, if it says anything of the target, is over its budget."""
    if measured is not None and form.measured_as_on_target:
        _check_budget(profile, "memory", profile.memory_budget_bytes, measured.speed.resident_bytes)


def _check_budget(profile: Profile, what: str, budget: int | None, used: int) -> None:
    """Storage and memory; speed budgets need the device itself."""
    if budget is not None and used > budget:
        raise GateError(
            f"{what} budget of target {profile.name}: {used / 1e6:.1f} MB, {budget / 1e6:.1f} MB are allowed",
            "remove more (--ratio), or choose a smaller --quant",
        )
