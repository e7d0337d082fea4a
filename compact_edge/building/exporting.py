"""`compact-edge export` as a function: a checkpoint directory to a checked file or folder of one format."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compact.base.cache import Cache, open_cache
from compact.base.errors import PlanMismatchError, UsageError
from compact.base.files import publish, write_sums
from compact.base.licences import NamingLicence, derived_name, legal_files, licence_notes, write_notice
from compact.base.progress import Progress
from compact.calibration.calibration_set import STDLIB_PROSE
from compact.pruning.calibration_choice import calibration_for
from compact.pruning.context import Context
from compact.pruning.options import PruneOptions
from compact.pruning.plan import PLAN, PrunePlan, read_plan
from compact.requested_texts import check_calibration
from compact.sources.model_source import ModelSource, open_source
from compact.vocabulary.chat_rendering import check_chat_templates
from compact.vocabulary.loading import tokenizer_note
from compact_edge.building.options import foreign_flags
from compact_edge.building.pruned_from import recorded_source
from compact_edge.output import check_output, existing
from exporters.base import Format
from exporters.card import licence_of
from exporters.format_values import Artifact, Choices, Request, Target, Variant
from exporters.gguf.artifact import checkpoint_id
from exporters.registry import format_named, formats

if TYPE_CHECKING:
    from exporters.gate import ParityReport


@dataclass(frozen=True)
class ExportOptions:
    """The options of an export.

    Attributes:
        checkpoint: checkpoint directory, Hub id or built-in model.
        out: directory to create.
        format: name of the format.
        quant: quantization type; None for the format's default.
        choices: values of the format's own flags (`exporters.base.Format.flags`).
        calibration_tokens: tokens of the text among the choices; None for the default.
        force: replace an earlier output.
        check: run the parity gate.
        use_cache: use and write the user's cache.
        pre: llama.cpp's name of the pre-tokenizer (`open_source`).
        source: the unpruned model of a pruned checkpoint, for the parity gate; or None.
    """

    checkpoint: str
    out: Path
    format: str
    quant: str | None = None
    choices: Choices = field(default_factory=dict)
    calibration_tokens: int | None = None
    force: bool = False
    check: bool = True
    use_cache: bool = True
    pre: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class ExportResult:
    """A published artifact.

    Attributes:
        out: its directory.
        format: the format, with its type resolved.
        artifact: the artifact in the cache, from which `out` was copied. Without the cache, its files are deleted.
        files: names of its files in `out`. The first is the one to open.
        parity: report of the parity gate; None if it was skipped.
    """

    out: Path
    format: Format
    artifact: Artifact
    files: tuple[str, ...]
    parity: ParityReport | None

    @property
    def path(self) -> Path:
        """Path of the artifact, as `evaluate` takes it: a file, or the folder of an ONNX model."""
        return self.format.published(self.out.absolute(), self.files)

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values for `--json`."""
        return {
            "file": str((self.out / self.files[0]).absolute()),
            "files": list(self.files),
            "quant": self.artifact.quant,
            "size_bytes": self.artifact.size_bytes,
            "bits_per_weight": self.artifact.bits_per_weight,
            **self.format.export_figures(self.artifact),
            "parity": None if self.parity is None else self.parity.as_dict(),
        }


def export_checkpoint(options: ExportOptions, progress: Progress) -> ExportResult:
    """Export a checkpoint, check the artifact and publish it.

    Raises:
        OutputExistsError, UsageError: before any work is done.
        GateError: the parity gate failed; nothing is published.
        CompactEdgeError: raised by the stages.
    """
    from targets.profile import load_profile

    chosen = format_named(options.format)
    target = load_profile(chosen.profile)
    quant = options.quant or chosen.export_quant
    choices, out = options.choices, options.out
    _check_choices(chosen, target, quant, choices)
    texts: tuple[str, ...] = choices.get("calibration") or ()
    files = [value for value in choices.values() if isinstance(value, Path)]
    check_output(out, force=options.force, inputs=existing(options.checkpoint, options.source, *texts, *files))
    requested = PruneOptions(calibration=texts or (STDLIB_PROSE,), calibration_tokens=options.calibration_tokens)
    check_calibration(options.checkpoint, requested)
    with open_cache(enabled=options.use_cache) as cache:
        source = open_source(options.checkpoint, cache, progress, pre=options.pre)
        check_chat_templates(source.directory)
        licence = licence_of(source)
        for note in licence_notes(licence, source.directory, card=False):
            progress.note(note)
        if (text := tokenizer_note(source.directory)) is not None:
            progress.note(text)
        plan = read_plan(source.directory / PLAN) if (source.directory / PLAN).is_file() else None
        unpruned = None if options.source is None else _unpruned(options, plan, cache, progress)
        resolved = chosen.resolve(target, source, quant=quant, choices=choices)
        request = Request(
            label="exported",
            checkpoint=source.directory,
            checkpoint_id=checkpoint_id(source.directory),
            name=derived_name(source.name, licence),
            description=None,
            published=True,
            source=source,
            calibration=calibration_for(Context(source, requested, cache, progress)),
            measures=bool(texts),
            pre=source.pre or (plan.pre if plan is not None else None),
            unpruned=unpruned,
        )
        artifact = resolved.make(request, cache, progress)
        variant = Variant(request.label, request.checkpoint, request.checkpoint_id, artifact)
        for note in resolved.notes(artifact):
            progress.note(note)
        report = _checked(resolved, variant, request, plan, cache, progress) if options.check else None
        if report is not None:
            report.require(tokenizer_hint=_tokenizer_hint(options, plan))
        with publish(out, force=options.force, needed_bytes=artifact.size_bytes) as work:
            names = resolved.place(work, variant, check=options.check)
            _finish(source, licence, work)
    return ExportResult(out, resolved, artifact, tuple(names), report)


def _checked(
    resolved: Format, variant: Variant, request: Request, plan: PrunePlan | None, cache: Cache, progress: Progress
) -> ParityReport:
    """Run the parity gate. If tokens differ, run it again with the unpruned model, if that is still there."""
    report = resolved.check(variant, request, None, progress)
    differs = any(check.name == "tokenizer" and check.passed is False for check in report.checks)
    if not differs or plan is None or request.unpruned is not None:
        return report
    source = recorded_source(plan, cache)
    if source is None:
        return report
    return resolved.check(variant, replace(request, unpruned=source.directory), None, progress)


def _unpruned(options: ExportOptions, plan: PrunePlan | None, cache: Cache, progress: Progress) -> Path:
    """Open the unpruned model that the user named and return its checkpoint directory."""
    if plan is None:
        raise UsageError(f"--source: {options.checkpoint} has no {PLAN}, so it is not pruned", "leave it out")
    source = open_source(str(options.source), cache, progress, pre=options.pre)
    if source.id != plan.source_id:
        raise PlanMismatchError(
            f"--source {options.source}: {options.checkpoint} was not pruned from it, but from {plan.source_name}",
            "name that model, with the files that it had then",
        )
    return source.directory


def _tokenizer_hint(options: ExportOptions, plan: PrunePlan | None) -> str | None:
    if options.pre is not None:
        return f"--pre {options.pre} may be wrong"
    if plan is not None and options.source is None:
        return "name the unpruned model with --source, in case it differs in the same way"
    return None


def _check_choices(chosen: type[Format], target: Target, quant: str, choices: Choices) -> None:
    """Check the options before the model is opened."""
    for each in formats():
        for flag in foreign_flags(each, (chosen.name,), choices, "export"):
            raise UsageError(f"{flag}: applies only to {each.label}", f"leave it out, or use --format {each.name}")
    chosen.check_export(target, quant, choices)


def _finish(source: ModelSource, licence: NamingLicence | None, work: Path) -> None:
    """Write the files that accompany every artifact: legal files and checksums."""
    for path in legal_files(source.directory):
        shutil.copyfile(path, work / path.name)
    write_notice(licence, work)
    write_sums(work)
