"""The pipeline behind `compact-edge build`: plan, prune, export, check, compare, publish.

Each stage is a function of frozen values and keeps its result in the cache; this module only strings them together.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compact.cache import Cache, open_cache
from compact.calibration import Calibration, read_documents
from compact.errors import DataError, GateError, UsageError
from compact.evaluate import Evaluation
from compact.evaluation_text import NAME, default_evaluation_text
from compact.languages import LanguageCost, language_costs
from compact.licences import NamingLicence, derived_name, licence_note
from compact.plan import PrunePlan
from compact.progress import Progress
from compact.prune import PruneOptions, calibration_for, check_calibration, make_plan, prune
from compact.source import TINY, ModelSource, open_source
from compact.store import check_free_space
from compact_edge.artifact_files import FileOptions, check_files
from compact_edge.output import check_output, existing
from compact_edge.side import Measured, Side, cached_value, evaluate_side, measure_side, row_lengths, sizes_by_part
from exporters.artifact import Export, artifact_notes, fitting_quant, make_artifact
from exporters.card import base_model_of, carried_to_gguf, licence_of
from exporters.engine import LlamaEngine
from exporters.gguf import GgufMetadata, check_exportable
from exporters.parity import POSITIONS, ParityReport, check_artifact, mean_kl, reference_for
from exporters.quant_types import check_rows, ggml_type, grid, quant_named

if TYPE_CHECKING:
    from targets.profile import Profile

# What both models are asked when the user names no prompt.
PROMPT = "Why is the sky blue?"
TINY_PROMPT = "What does `os.path.join` do?"
# Raised when a pruned checkpoint's files change for an equal plan, or the gate's meaning for an equal artifact.
_PRUNE_VERSION = 2
_GATE_VERSION = 2


@dataclass(frozen=True)
class BuildOptions:
    """What `build` was asked for. Paths are as given; None means the default."""

    model: str
    target: str
    prune: PruneOptions
    quant: str | None = None
    embedding_quant: str | None = None
    imatrix: Path | None = None
    out: Path | None = None
    force: bool = False
    baseline: bool = True
    with_baseline: bool = False
    check: bool = True
    eval_text: Path | None = None
    prompt: str | None = None
    threads: int | None = None
    use_cache: bool = True
    files: FileOptions = field(default_factory=FileOptions)


@dataclass(frozen=True)
class Compared:
    """One side with all that is known of it."""

    side: Side
    parts: dict[str, int]
    evaluation: Evaluation
    artifact_evaluation: Evaluation
    parity: ParityReport | None
    measured: Measured


@dataclass(frozen=True)
class BuildResult:
    """What `build` made; `before` is None with `--no-baseline`, `files` are the artifact's, the one to open first."""

    source: ModelSource
    profile: Profile
    plan: PrunePlan
    calibration: Calibration
    before: Compared | None
    after: Compared
    languages: list[LanguageCost]
    eval_name: str
    prompt: str
    compute: Compute
    out: Path
    notes: list[str]
    licence: NamingLicence | None
    reused: list[str]
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Compute:
    """Where and how the models run: torch device and dtype of the checkpoints, threads of llama.cpp."""

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
    from compact_edge.publication import publish_build
    from targets.profile import load_profile

    profile = load_profile(options.target)
    if profile.runtime != "llama.cpp":
        raise UsageError(f"--target {options.target}: its runtime {profile.runtime} is not built yet", "use gguf")
    _check_options(options)
    with open_cache(enabled=options.use_cache) as cache:
        source = open_source(options.model, cache, progress)
        licence = licence_of(source)
        out = (options.out or Path(f"{derived_name(source.name, licence)}-compact")).absolute()
        check_output(out, force=options.force, inputs=_inputs(options))
        # Checkpoint, float file and artifact of the pruned model in the cache; the artifact again at its place.
        check_free_space(cache.root, 6 * source.n_params)
        check_free_space(out.parent, 2 * source.n_params)
        result = _run(options, profile, source, licence, out, cache, progress)
        return replace(result, files=publish_build(options, result))


def _check_options(options: BuildOptions) -> None:
    """What can be refused before the model is opened."""
    if options.with_baseline and not options.baseline:
        raise UsageError("--with-baseline and --no-baseline exclude each other", "give one of them")
    if options.embedding_quant is not None:
        ggml_type(options.embedding_quant)
    if options.quant is not None:
        quant = quant_named(options.quant)
        if options.imatrix is not None and not quant.uses_imatrix:
            raise UsageError(f"--imatrix: {quant.name} files use none", "leave it out, or choose a 4-bit type")
    if options.imatrix is not None and not options.imatrix.is_file():
        raise DataError(f"--imatrix {options.imatrix}: no such file", "leave it out to have one measured")
    if options.out is not None:
        check_output(options.out, force=options.force, inputs=_inputs(options))
    check_calibration(options.model, options.prune)


def _inputs(options: BuildOptions) -> list[Path]:
    """The files and directories that the build reads."""
    asked = options.prune
    texts = (asked.calibration, asked.vocab_corpus, asked.keep_tokens, options.eval_text)
    return existing(options.model, *texts, options.imatrix)


def choose_quant(options: BuildOptions, profile: Profile, source: ModelSource) -> tuple[str, str | None]:
    """(type, type of the embedding) for this model: what the user named, else the profile's type that fits the rows."""
    if options.quant is not None:
        check_rows(options.quant, row_lengths(source.config))
        return quant_named(options.quant).name, options.embedding_quant
    quant = fitting_quant(profile.quantization, profile.quantization_block32, row_lengths(source.config))
    embedding = options.embedding_quant
    fits = source.hidden_size % ggml_type(profile.embedding_quant).block == 0
    if embedding is None and quant_named(quant).writer == "llama" and fits:
        embedding = profile.embedding_quant
    return quant, embedding


def _run(
    options: BuildOptions,
    profile: Profile,
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
    # What a GGUF cannot hold is refused now, not after hours of calibration.
    check_exportable(source.directory)
    quant, embedding = choose_quant(options, profile, source)
    compute = resolve_compute(options)
    eval_name, text = _evaluation_text(options)
    pruning = replace(options.prune, channel_grid=grid(quant))
    calibration = calibration_for(source, pruning, cache=cache, progress=progress)
    plan = make_plan(source, pruning, cache, calibration=calibration, progress=progress)

    def make(work: Path) -> None:
        prune(source, plan, work, progress=progress)

    needed = 4 * source.n_params
    pruned = cache.get_or_make("pruned", f"{plan.id}-{_PRUNE_VERSION}", make, needed_bytes=needed)
    prompt = options.prompt or (TINY_PROMPT if source.origin == TINY else PROMPT)

    def side(label: str, checkpoint: Path, identity: str, name: str, description: str) -> Side:
        export = Export(
            checkpoint=checkpoint,
            checkpoint_id=identity,
            quant=quant,
            name=name,
            pre=plan.pre,
            embedding_quant=embedding,
            # A ready importance matrix is of one model; the other side measures its own.
            imatrix_file=options.imatrix if label == "pruned" else None,
            texts=calibration.texts,
            texts_id=calibration.id,
            texts_name=calibration.label,
            with_imatrix=options.files.save_imatrix,
            metadata=GgufMetadata(
                name=name,
                base_model=source.hub_id or base_model_of(source.directory),
                description=description,
                card=carried_to_gguf(source.directory),
                extra={"compact_edge.plan_id": plan.id} if label == "pruned" else {},
            ),
        )
        artifact = make_artifact(export, cache, progress)
        if label == "pruned" or options.with_baseline:
            check_files(artifact, options.files)
        return Side(label, checkpoint, identity, artifact)

    before = None
    baseline_kl = None
    if options.baseline:
        original = side("original", source.directory, source.id, model_name, f"{source.name}, unpruned")
        baseline_kl = _baseline_kl(original, calibration, cache)
        before = _compare(original, text, prompt, compute, cache, progress, parity=None)
    removed = 1 - sizes_by_part(pruned)["total"] / source.n_params
    description = (
        f"{source.name} with {removed:.1%} of its parameters removed by COMPACT (arXiv 2509.06836): vocabulary "
        f"{source.vocab_size} -> {plan.vocab_size}, FFN {source.intermediate_size} -> {plan.intermediate_size}"
    )
    smaller = side("pruned", pruned, f"{plan.id}-{_PRUNE_VERSION}", f"{model_name}-compact", description)
    for note in artifact_notes(smaller.artifact):
        notes.append(note)
        progress.note(note)
    _check_budget(profile, "storage", profile.storage_budget_bytes, smaller.artifact.size_bytes)
    parity = None
    if options.check:
        parity = _gate(smaller, source, plan, calibration, baseline_kl, cache, progress)
        parity.require()
    after = _compare(smaller, text, prompt, compute, cache, progress, parity=parity)
    _check_budget(profile, "memory", profile.memory_budget_bytes, after.measured.speed.resident_bytes)
    return BuildResult(
        source=source,
        profile=profile,
        plan=plan,
        calibration=calibration,
        before=before,
        after=after,
        languages=language_costs(source.directory, pruned),
        eval_name=eval_name,
        prompt=prompt,
        compute=compute,
        out=out,
        notes=notes,
        licence=licence,
        reused=list(cache.hits),
    )


def _evaluation_text(options: BuildOptions) -> tuple[str, str]:
    if options.eval_text is None:
        return NAME, default_evaluation_text()
    return options.eval_text.name, "\n\n".join(read_documents(options.eval_text))


def _baseline_kl(side: Side, calibration: Calibration, cache: Cache) -> float | None:
    """Mean KL of the unpruned artifact to its float32 model: what the pruned one's is judged by."""
    from exporters.parity import MEMORY_SHARE
    from exporters.partial import fits_in_memory

    if side.artifact.quant == "F32" or not fits_in_memory(side.checkpoint, side.artifact.path, MEMORY_SHARE):
        return None

    def measure() -> dict[str, Any]:
        reference = reference_for(side.checkpoint, calibration.texts, greedy=False)
        with LlamaEngine(side.artifact.path, n_ctx=POSITIONS) as engine:
            return {"mean_kl": mean_kl(reference, engine)}

    key = {"version": _GATE_VERSION, "artifact": side.artifact.sha256, "texts": calibration.id, **_engines()}
    return float(cached_value(cache, "baseline-kl", key, measure)["mean_kl"])


def _engines() -> dict[str, str]:
    return {package: version(package) for package in ("llama-cpp-python", "torch", "transformers")}


def _gate(
    side: Side,
    source: ModelSource,
    plan: PrunePlan,
    calibration: Calibration,
    baseline_kl: float | None,
    cache: Cache,
    progress: Progress,
) -> ParityReport:
    from exporters.parity import MEMORY_SHARE
    from exporters.partial import fits_in_memory

    def check() -> dict[str, Any]:
        report = check_artifact(
            side.checkpoint,
            side.artifact.path,
            side.artifact.quant,
            calibration.texts,
            unpruned=source.directory,
            baseline_kl=baseline_kl,
            pre=plan.pre,
            progress=progress,
        )
        return report.as_dict()

    key = {
        "version": _GATE_VERSION,
        "artifact": side.artifact.sha256,
        "checkpoint": side.checkpoint_id,
        "texts": calibration.id,
        "baseline_kl": baseline_kl,
        # A report that short memory made partial is no answer on a day with more.
        "whole": fits_in_memory(side.checkpoint, side.artifact.path, MEMORY_SHARE),
        **_engines(),
    }
    return ParityReport.from_dict(cached_value(cache, "parity", key, check))


def _compare(
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
        side, text, cache, device=compute.device, dtype=compute.dtype, threads=threads, progress=progress
    )
    measured = measure_side(side, text, prompt, threads)
    return Compared(side, sizes_by_part(side.checkpoint), evaluation, artifact_evaluation, parity, measured)


def _check_budget(profile: Profile, what: str, budget: int | None, used: int) -> None:
    """Storage and memory budgets of the target. Raises GateError; speed budgets need the device itself."""
    if budget is not None and used > budget:
        raise GateError(
            f"{what} budget of target {profile.name}: {used / 1e6:.1f} MB, {budget / 1e6:.1f} MB are allowed",
            "remove more (--ratio), or choose a smaller --quant",
        )
