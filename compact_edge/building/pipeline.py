"""The pipeline of `compact-edge build`: plan, prune, export, check, compare, publish.

Each stage is a function of frozen values and stores its result in the cache. This module only calls them in order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compact.base.cache import Cache, open_cache
from compact.base.errors import GateError
from compact.base.files import check_free_space
from compact.base.licences import NamingLicence, derived_name, licence_notes
from compact.base.progress import Progress
from compact.calibration.calibration_set import Calibration
from compact.calibration.evaluation_text import NAME, default_evaluation_text
from compact.decide import pruned_checkpoint
from compact.pruning.budget import Sizes
from compact.pruning.calibration_choice import calibration_for
from compact.pruning.context import Context
from compact.pruning.plan import PrunePlan
from compact.sources.model_source import TINY, ModelSource, open_source
from compact.texts.documents import read_documents
from compact.vocabulary.chat_rendering import check_chat_templates
from compact.vocabulary.language_costs import language_costs
from compact_edge.building.deciding import Names, decide_build, description, names_of, original_request
from compact_edge.building.fit import check_fit
from compact_edge.building.method_report import plan_words
from compact_edge.building.options import (
    BuildOptions,
    by_format,
    check_options,
    inputs_of,
    parse_quants,
    resolve_format,
)
from compact_edge.building.publication import publish_build
from compact_edge.building.result import BuildResult, Compute, FormatResult, VariantResult
from compact_edge.building.variant import cached_value, evaluate_variant, sizes_by_part
from compact_edge.front.place import Built, place_of
from compact_edge.output import check_output
from exporters.base import Format
from exporters.card import licence_of
from exporters.format_values import PRUNED, Measurements, Request, Target, Variant
from exporters.gate import MEMORY_SHARE, ParityReport, fits_in_memory

if TYPE_CHECKING:
    from targets.profile import Profile

# Default prompts for both models.
PROMPT = "Why is the sky blue?"
TINY_PROMPT = "What does `os.path.join` do?"
# Increase this when the meaning of the gate changes for an equal artifact.
_GATE_VERSION = 5


def resolve_compute(options: BuildOptions) -> Compute:
    """Resolve `auto` in the options."""
    from compact.base.devices import default_threads, resolve_device, resolve_dtype

    device = resolve_device(options.prune.device)
    dtype = str(resolve_dtype(options.prune.dtype, device)).removeprefix("torch.")
    return Compute(device, dtype, options.threads or default_threads())


def build(options: BuildOptions, progress: Progress) -> BuildResult:
    """Run the whole pipeline and publish the result.

    Raises:
        OutputExistsError, UsageError, BudgetError: the options are invalid. Raised before any work starts.
        GateError: the parity gate failed, or the artifact exceeds a budget of the target. Nothing is published.
        CompactEdgeError: a stage failed.
    """
    from targets.profile import load_profile

    return build_for(options, by_format([load_profile(name) for name in options.targets]), progress)


def build_for(options: BuildOptions, profiles: Mapping[str, Profile], progress: Progress) -> BuildResult:
    """Run `build` for loaded profiles, one per format. `options.targets` is ignored."""
    quants = parse_quants(options.quants, tuple(profiles))
    check_options(options, profiles, quants)
    with open_cache(enabled=options.use_cache) as cache:
        source = open_source(options.model, cache, progress, pre=options.pre)
        check_chat_templates(source.directory)
        licence = licence_of(source)
        out = (options.out or Path(f"{derived_name(source.name, licence)}-compact")).absolute()
        check_output(out, force=options.force, inputs=inputs_of(options))
        # The cache holds the checkpoint, float file and artifact of the pruned model. The output holds the artifacts.
        check_free_space(cache.root, 6 * source.n_params)
        check_free_space(out.parent, 2 * source.n_params)
        formats = [resolve_format(options, profile, quants, source) for profile in profiles.values()]
        result = _run(options, formats, profiles, source, licence=licence, out=out, cache=cache, progress=progress)
        return replace(result, formats=publish_build(options, result))


def _run(
    options: BuildOptions,
    formats: Sequence[Format],
    profiles: Mapping[str, Profile],
    source: ModelSource,
    *,
    licence: NamingLicence | None,
    out: Path,
    cache: Cache,
    progress: Progress,
) -> BuildResult:
    notes = licence_notes(licence, source.directory, card=True)
    for note in notes:
        progress.note(note)
    if source.note:
        notes.insert(0, source.note)
    model_name = derived_name(source.name, licence)
    compute = resolve_compute(options)
    eval_name, text = _evaluation_text(options)
    # 1. Plan: rank, calibrate and choose the sizes and types, or read an existing plan.
    context = Context(source, options.prune, cache, progress)
    calibration = context.once(calibration_for)
    names = names_of(options, context, licence)
    original = original_request(context, model_name, published=options.with_baseline)
    decided = decide_build(options, formats, profiles, context, original, names=names, threads=compute.threads)
    formats, decision, pruning = decided.formats, decided.decision, decided.context.options
    notes += decided.notes
    plan = decision.plan
    # 2. Prune.
    pruned, pruned_id = pruned_checkpoint(source, decision, cache, progress=progress)
    # 3. Export, check and compare, once per format.
    prompt = options.prompt or (TINY_PROMPT if source.origin == TINY else PROMPT)
    original = replace(original, pre=source.pre or plan.pre)
    smaller = pruned_request(original, plan, pruned, pruned_id, names.pruned)

    def result_of(artifact_format: Format) -> FormatResult:
        compare = partial(
            _compare, artifact_format, text=text, prompt=prompt, compute=compute, cache=cache, progress=progress
        )
        before = None
        baseline_kl = None
        if options.baseline:
            variant = _variant(original, artifact_format, cache, progress)
            baseline_kl = _baseline_kl(artifact_format, variant, calibration, cache) if options.check else None
            before = compare(variant, None)
        variant = _variant(smaller, artifact_format, cache, progress)
        own_notes = artifact_format.notes(variant.artifact)
        for note in own_notes:
            progress.note(note)
        check_storage(artifact_format.target, variant.artifact.size_bytes)
        check_fit(pruning.fit_bytes, variant.artifact.size_bytes)
        parity = None
        if options.check:
            parity = _gate(artifact_format, variant, smaller, baseline_kl, cache, progress)
            parity.require(tokenizer_hint=None if source.pre is None else f"--pre {source.pre} may be wrong")
        after = compare(variant, parity)
        check_memory(artifact_format.target, artifact_format, after.measured)
        place = None
        if before is not None and plan.search is not None and "predicted" in plan.search:
            place = _place(
                before, after, artifact_format, plan, decided.context, original, options=options, names=names
            )
        return FormatResult(artifact_format, before, after, own_notes, place=place)

    return BuildResult(
        source=source,
        plan=plan,
        pruning=pruning,
        calibration=calibration,
        formats=tuple(result_of(each) for each in formats),
        languages=language_costs(source.directory, pruned),
        eval_name=eval_name,
        prompt=prompt,
        compute=compute,
        out=out,
        notes=notes,
        licence=licence,
        reused=list(cache.reused),
    )


def _place(
    before: VariantResult,
    after: VariantResult,
    artifact_format: Format,
    plan: PrunePlan,
    context: Context,
    original: Request,
    *,
    options: BuildOptions,
    names: Names,
) -> str | None:
    """Compare the artifact with all sizes and types. The baseline shows what the type costs."""
    if before.artifact_evaluation is None:
        return None
    loss = math.log(before.artifact_evaluation.bits_per_byte / before.evaluation.bits_per_byte)
    built = Built(artifact_format, plan.sizes, after.variant.artifact.size_bytes, loss)
    return place_of(built, context, original, options.choices, (names.pruned, names.longest))


def pruned_request(original: Request, plan: PrunePlan, checkpoint: Path, checkpoint_id: str, name: str) -> Request:
    """Return the request for the pruned artifact, derived from the request for the unpruned one."""
    source = original.source
    removed = 1 - sizes_by_part(checkpoint)["total"] / source.n_params
    whole = Sizes(source.vocab_size, source.intermediate_size)
    return replace(
        original,
        label=PRUNED,
        checkpoint=checkpoint,
        checkpoint_id=checkpoint_id,
        name=name,
        description=description(source.name, removed, (whole, plan.sizes), plan_words(plan)),
        published=True,
        plan_id=plan.id,
    )


def _variant(request: Request, artifact_format: Format, cache: Cache, progress: Progress) -> Variant:
    artifact = artifact_format.make(request, cache, progress)
    return Variant(request.label, request.checkpoint, request.checkpoint_id, artifact)


def _evaluation_text(options: BuildOptions) -> tuple[str, str]:
    if options.eval_text is None:
        return NAME, default_evaluation_text()
    return options.eval_text.name, "\n\n".join(read_documents(options.eval_text))


def _baseline_kl(artifact_format: Format, variant: Variant, calibration: Calibration, cache: Cache) -> float | None:
    """Return the mean KL of the unpruned artifact to its float32 model. The gate judges the pruned artifact by it."""
    # Do not cache this when memory was short; a later run may have enough.
    if not _is_whole(variant):
        return None
    key = {
        "version": _GATE_VERSION,
        "artifact": variant.artifact.sha256,
        "texts": calibration.id,
        **artifact_format.versions(),
    }
    value = cached_value(
        cache, "baseline-kl", key, lambda: {"mean_kl": artifact_format.baseline_kl(variant, calibration)}
    )["mean_kl"]
    return None if value is None else float(value)


def _is_whole(variant: Variant) -> bool:
    """Return whether the whole model and its artifact fit in memory together."""
    return fits_in_memory(variant.checkpoint, variant.artifact.size_bytes, MEMORY_SHARE)


def _gate(
    artifact_format: Format,
    variant: Variant,
    request: Request,
    baseline_kl: float | None,
    cache: Cache,
    progress: Progress,
) -> ParityReport:
    def check() -> dict[str, Any]:
        return artifact_format.check(variant, request, baseline_kl, progress).as_dict()

    key = {
        "version": _GATE_VERSION,
        "artifact": variant.artifact.sha256,
        "checkpoint": variant.checkpoint_id,
        "texts": request.calibration.id,
        "baseline_kl": baseline_kl,
        # A partial report for lack of memory must not be reused when more memory is free.
        "whole": _is_whole(variant),
        **artifact_format.versions(),
    }
    return ParityReport.from_dict(cached_value(cache, "parity", key, check))


def _compare(
    artifact_format: Format,
    variant: Variant,
    parity: ParityReport | None,
    *,
    text: str,
    prompt: str,
    compute: Compute,
    cache: Cache,
    progress: Progress,
) -> VariantResult:
    threads = compute.threads
    evaluation, artifact_evaluation = evaluate_variant(
        artifact_format,
        variant,
        text,
        cache,
        device=compute.device,
        dtype=compute.dtype,
        threads=threads,
        progress=progress,
    )
    measured = artifact_format.measure(variant, text, prompt, threads)
    return VariantResult(variant, sizes_by_part(variant.checkpoint), evaluation, artifact_evaluation, parity, measured)


def check_storage(target: Target, n_bytes: int) -> None:
    """Raise GateError if the files of an artifact exceed the storage budget of the target."""
    _check_budget(target, "storage", target.storage_budget_bytes, n_bytes)


def check_memory(target: Target, artifact_format: Format, measured: Measurements | None) -> None:
    """Raise GateError if the measured memory exceeds the budget of the target.

    Skip the check if this machine measured on another kind of device than the target uses.
    """
    if measured is not None and artifact_format.measured_as_on_target:
        _check_budget(target, "memory", target.memory_budget_bytes, measured.speed.resident_bytes)


def _check_budget(target: Target, what: str, budget: int | None, used: int) -> None:
    """Check a storage or memory budget. Speed budgets can only be checked on the device itself."""
    if budget is not None and used > budget:
        raise GateError(
            f"{what} budget of target {target.name}: the model needs {used / 1e6:.1f} MB, but at most "
            f"{budget / 1e6:.1f} MB are allowed",
            "remove more (--ratio), or choose a smaller --quant",
        )
