"""The results of a build."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compact_edge.building import method_report, vocabulary_report

if TYPE_CHECKING:
    from compact.base.licences import NamingLicence
    from compact.calibration.calibration_set import Calibration
    from compact.forward.evaluate import Evaluation
    from compact.pruning.options import PruneOptions
    from compact.pruning.plan import PrunePlan
    from compact.sources.model_source import ModelSource
    from compact.vocabulary.language_costs import LanguageCost
    from exporters.base import Format
    from exporters.format_values import Measurements, Variant
    from exporters.gate import ParityReport


@dataclass(frozen=True)
class Compute:
    """Where and how the models run: torch device and dtype of the checkpoints, threads of the runtimes."""

    device: str
    dtype: str
    threads: int


@dataclass(frozen=True)
class VariantResult:
    """A variant of the model with its sizes, scores, checks and measurements."""

    variant: Variant
    parts: dict[str, int]
    evaluation: Evaluation
    artifact_evaluation: Evaluation | None
    parity: ParityReport | None
    measured: Measurements | None

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        artifact, scored = self.variant.artifact, self.artifact_evaluation
        return {
            "parameters": self.parts,
            "quant": artifact.quant,
            "size_bytes": artifact.size_bytes,
            "bits_per_weight": artifact.bits_per_weight,
            "bits_per_byte": {
                "checkpoint": self.evaluation.bits_per_byte,
                "artifact": None if scored is None else scored.bits_per_byte,
            },
            "this_machine": None if self.measured is None else self.measured.as_dict(),
        }


@dataclass(frozen=True)
class FormatResult:
    """One format of a build.

    Attributes:
        format: the format, with its type resolved.
        before: the unpruned model; None with `--no-baseline`.
        after: the pruned model.
        notes: notes for the user about this format.
        files: file names of the pruned artifact. The file to open comes first.
        place: where the file is, compared with all sizes and types; None if that is not known.
    """

    format: Format
    before: VariantResult | None
    after: VariantResult
    notes: list[str]
    files: tuple[str, ...] = ()
    place: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        after = self.after
        return {
            "target": self.format.target.name,
            "artifact": self.files[0],
            "artifact_files": list(self.files),
            "before": None if self.before is None else self.before.as_dict(),
            "after": after.as_dict(),
            "parity": None if after.parity is None else after.parity.as_dict(),
            "place": self.place,
            "notes": self.notes,
        }


@dataclass(frozen=True)
class BuildResult:
    """The result of `build`, with one `FormatResult` per format in the order of the targets."""

    source: ModelSource
    plan: PrunePlan
    pruning: PruneOptions
    calibration: Calibration
    formats: tuple[FormatResult, ...]
    languages: list[LanguageCost]
    eval_name: str
    prompt: str
    compute: Compute
    out: Path
    notes: list[str]
    licence: NamingLicence | None
    reused: list[str]

    @property
    def artifacts(self) -> dict[str, Path]:
        """Format -> path of the published artifact, as `evaluate` takes it: a file, or the folder of an ONNX model."""
        return {
            each.format.name: each.format.published(self.out / each.format.name, each.files) for each in self.formats
        }

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values for `--json`. Speed and memory are of this machine."""
        return {
            "out": str(self.out),
            "model": self.source.name,
            "hub": self.source.hub_reference,
            "plan_id": self.plan.id,
            **method_report.as_json(self.plan),
            **vocabulary_report.as_json(self.plan),
            "search": self.plan.search,
            "formats": {each.format.name: each.as_dict() for each in self.formats},
            "evaluation_text": self.eval_name,
            "languages": [
                {"language": cost.language, "before": cost.before, "after": cost.after} for cost in self.languages
            ],
            "prompt": self.prompt,
            "threads": self.compute.threads,
            "dtype": self.compute.dtype,
            "notes": self.notes,
            "stages_reused": self.reused,
        }
