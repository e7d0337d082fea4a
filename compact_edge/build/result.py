"""The results of a build."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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


@dataclass(frozen=True)
class FormatResult:
    """One format of a build.

    Attributes:
        format: the format, with its type resolved.
        before: the unpruned model; None with `--no-baseline`.
        after: the pruned model.
        notes: notes for the user about this format.
        files: file names of the pruned artifact. The file to open comes first.
    """

    format: Format
    before: VariantResult | None
    after: VariantResult
    notes: list[str]
    files: tuple[str, ...] = ()


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
