"""What an export format is: one class with this interface, which `exporters.registry` lists.

Commands, builds and releases know no other difference between formats.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from compact.base.errors import UsageError
from exporters.format_values import (
    Artifact,
    ArtifactSizes,
    Choices,
    Flag,
    Measurements,
    Request,
    SizeRequest,
    Target,
    Variant,
)

if TYPE_CHECKING:
    from compact.base.cache import Cache
    from compact.base.progress import Progress
    from compact.calibration.calibration_set import Calibration
    from compact.forward.evaluate import Evaluation, TextScorer
    from compact.sources.model_source import ModelSource
    from compact.vocabulary.token_pieces import TokenPieces
    from exporters.gate import ParityReport
    from exporters.llamacpp.quant_list import QuantTable
    from exporters.task_runtime import Runtime


def size_not_known(name: str) -> UsageError:
    """The error of `--fit` with a format whose size only making it tells."""
    return UsageError(
        f"--fit: the size of an artifact of the format {name} is not known before it is made",
        "give a --ratio instead, or build the gguf with --fit first",
    )


@dataclass(frozen=True)
class Format(ABC):
    """One artifact format of one build, its type resolved for the model at hand.

    Attributes:
        target: the device profile.
        name: of the format; also the folder of a build, and in lower case the end of a release folder's name.
        label: its name in messages.
        runtime: what a profile calls the runtime that opens it.
        engine: what measures it on this machine.
        engine_package: the package whose version names that engine, None where none does.
        packages: those that decide what an artifact's bytes, or figures, are.
        profile: name, or path, of the profile that sets no budget; `export` takes its settings.
        export_quant: type of `export` without `--quant`: the one that loses least.
        suffix: ending of the artifact's file; empty where the artifact is a folder.
        flags: the options of the command line that belong to it.
        predicts_size: whether `sizes` is answered, so that `--fit` can be asked for.
        file_types: types that a profile may name -> what the length of a row must be a multiple of.
        tensor_types: the same for the type of the token embedding, and for rows that are no multiple of a block.
        providers: execution providers that a profile may name; empty where it names none.
        profile_keys: keys of a profile that only profiles of this runtime have.
    """

    target: Target
    name: ClassVar[str]
    label: ClassVar[str]
    runtime: ClassVar[str]
    engine: ClassVar[str]
    engine_package: ClassVar[str | None] = None
    packages: ClassVar[tuple[str, ...]] = ()
    profile: ClassVar[str]
    export_quant: ClassVar[str]
    suffix: ClassVar[str] = ""
    flags: ClassVar[tuple[Flag, ...]] = ()
    predicts_size: ClassVar[bool] = False
    file_types: ClassVar[Mapping[str, int]]
    tensor_types: ClassVar[Mapping[str, int]]
    providers: ClassVar[tuple[str, ...]] = ()
    profile_keys: ClassVar[tuple[str, ...]] = ()

    # What is asked of the class, before a model is opened.

    @classmethod
    @abstractmethod
    def quants(cls) -> tuple[str, ...]:
        """The types that an artifact can be made in."""

    @classmethod
    def embedding_types(cls, quantization: str) -> Sequence[str]:
        """The types that a profile may name for the token embedding, beside files of `quantization`."""
        del quantization
        return tuple(cls.tensor_types)

    @classmethod
    def quant_report(cls) -> dict[str, Any]:
        """What `--quant list --json` says of the format."""
        return {cls.name: {"types": [{"name": name} for name in cls.quants()]}}

    @classmethod
    def quant_tables(cls) -> Sequence[QuantTable]:
        """The same as tables for people."""
        from exporters.llamacpp.quant_list import Column, QuantTable

        column = Column(f"{cls.label} type")
        return [QuantTable((column,), [(name,) for name in cls.quants()])]

    @classmethod
    def check_choices(cls, target: Target, quant: str | None, choices: Choices) -> None:
        """Refuse what can be refused before the model is opened. Raises UsageError, DataError."""
        del target, choices
        if quant is not None and quant not in cls.quants():
            raise UsageError(f"{cls.label} type {quant[:40]!r} is not known", f"one of: {', '.join(cls.quants())}")

    @classmethod
    def check_export(cls, target: Target, quant: str, choices: Choices) -> None:
        """`check_choices` for the command `export`."""
        cls.check_choices(target, quant, choices)

    # Making an artifact.

    @classmethod
    @abstractmethod
    def resolve(
        cls,
        target: Target,
        source: ModelSource,
        *,
        quant: str | None = None,
        choices: Choices | None = None,
        intermediate_size: int | None = None,
    ) -> Self:
        """The format for a model: what the user named, else the target's.

        Args:
            target: the device profile.
            source: the unpruned model.
            quant: the type asked for, None for the target's.
            choices: values of the format's flags.
            intermediate_size: the final one where the user named it.

        Raises:
            CompactEdgeError: the format cannot hold the model, or a package is missing.
        """

    @property
    @abstractmethod
    def quant(self) -> str:
        """The type, as its runtime's users name it."""

    @property
    def channel_grid(self) -> int:
        """What the number of kept FFN channels should be a multiple of."""
        return 1

    @property
    def tags(self) -> tuple[str, ...]:
        """Tags of the model card."""
        return (self.name, self.engine)

    @property
    def measured_as_on_target(self) -> bool:
        """Whether the short run here uses the target's kind of device, so that its memory can be judged."""
        return True

    def versions(self) -> dict[str, str]:
        """Versions of the packages that decide what an artifact's bytes, or figures, are."""
        return {package: version(package) for package in self.packages}

    @abstractmethod
    def make(self, request: Request, cache: Cache, progress: Progress) -> Artifact:
        """Make the artifact, or take it from the cache."""

    def sizes(self, request: SizeRequest) -> ArtifactSizes:
        """How large the artifact will be at given sizes. Raises UsageError where that is not known beforehand."""
        del request
        raise size_not_known(self.name)

    def notes(self, artifact: Any) -> list[str]:
        """What the user should hear of the type."""
        del artifact
        return []

    # Opening an artifact: one that was made here, or one that the user names.

    @classmethod
    @abstractmethod
    def recognises(cls, model: str) -> Path | None:
        """What to open where the word names an artifact of this format, else None. Raises CompactEdgeError."""

    @classmethod
    @abstractmethod
    def open(cls, path: Path, *, threads: int, window: int | None = None) -> AbstractContextManager[TextScorer]:
        """Open an artifact with a context of one window, at most the default one."""

    @classmethod
    @abstractmethod
    def pieces(cls, path: Path) -> TokenPieces:
        """The tokens of an artifact's vocabulary."""

    @classmethod
    @abstractmethod
    def score(
        cls,
        path: Path,
        text: str,
        *,
        threads: int,
        progress: Progress,
        window: int | None = None,
        label: str = "evaluating",
    ) -> Evaluation:
        """Bits per byte of an artifact through its runtime, with its own tokenizer and the windows of a checkpoint."""

    @classmethod
    def open_for_tasks(cls, path: Path, *, threads: int, batch_size: int) -> Runtime:
        """Open an artifact for `eval --tasks`. Raises UsageError where the format cannot score tasks."""
        del threads, batch_size
        raise UsageError(f"{path.name}: tasks are not scored on the format {cls.name}", "score the checkpoint instead")

    def evaluate(
        self, artifact: Artifact, text: str, *, threads: int, progress: Progress, label: str
    ) -> Evaluation | None:
        """`score` of an artifact; None where the runtime cannot open it on this machine."""
        return self.score(artifact.opened, text, threads=threads, progress=progress, label=label)

    def measure(self, variant: Variant, text: str, prompt: str | None, threads: int) -> Measurements | None:
        """A short run: speed, memory and the reply to a prompt; None as for `evaluate`."""
        del variant, text, prompt, threads
        return None

    # The parity gate.

    def baseline_kl(self, variant: Variant, calibration: Calibration) -> float | None:
        """Mean KL of an unpruned artifact, which fits in memory whole, to its float32 model.

        None where the strict checks judge the type, or the runtime cannot open the artifact on this machine.
        """
        del variant, calibration
        return None

    @abstractmethod
    def check(self, variant: Variant, request: Request, baseline_kl: float | None, progress: Progress) -> ParityReport:
        """The parity gate of the artifact that `request` made."""

    # What is published.

    @abstractmethod
    def place(self, folder: Path, variant: Variant, *, check: bool) -> tuple[str, ...]:
        """Write the artifact's files into a folder that is about to be published; returns the model's, first first."""

    def options(self) -> dict[str, Any]:
        """The format's options for the manifest."""
        return {"quant": self.quant}

    def describe(self, artifact: Any, names: Sequence[str]) -> dict[str, Any]:
        """The artifact for the manifest."""
        del artifact, names
        return {}

    def export_figures(self, artifact: Any) -> dict[str, Any]:
        """What `export --json` says of the artifact beside type and size."""
        return {"sha256": artifact.sha256}

    @abstractmethod
    def usage(self, names: Sequence[str], checkpoint: Path, title: str) -> tuple[str, list[str]]:
        """For the card: (`console` or `python`, lines that run the artifact in its own folder)."""

    def commands(self, folder: Path, names: Sequence[str], checkpoint: Path) -> list[str]:
        """Command lines that run the published artifact."""
        del folder, names, checkpoint
        return []

    def published(self, folder: Path, names: Sequence[str]) -> Path:
        """What a command of ours is given to open the published artifact: its file, or its folder."""
        return folder / names[0] if self.suffix else folder

    def model_files(self, names: Sequence[str]) -> Sequence[str]:
        """Those of the published files whose size the card states, the one to open first."""
        return names[:1]

    def card_notes(self, names: Sequence[str]) -> list[str]:
        """Lines of the model card about the files."""
        del names
        return []

    # A release: files that several targets share, and the same file made again.

    @classmethod
    def release_recipe(cls, target: Target, quant: str | None) -> dict[str, Any]:
        """What decides a file beside model, plan and `quant`, as plain values. `quant` is None for the target's own.

        Raises UsageError for a type that the target excludes.
        """
        return {"quantization": target.quantization} if quant is None else {}

    @classmethod
    def recipe_label(cls, recipe: Mapping[str, Any]) -> str:
        """A word for a recipe, which ends in `-TYPE` or is the type; several recipes may have the same."""
        return str(recipe["quant"] or recipe["quantization"])

    @classmethod
    def from_release(cls, recipe: Mapping[str, Any], target: Target, source: ModelSource) -> Self:
        """The format of a release's recipe. A plan depends on its grid, so no package of the runtime may be needed.

        Raises CompactEdgeError where it cannot hold the model.
        """
        return cls.resolve(target, source, quant=recipe["quant"])

    @classmethod
    def from_manifest(
        cls, recipe: Mapping[str, Any], target: Target, source: ModelSource, imatrix: Path | None = None
    ) -> Self:
        """The format that made a release's file, by `manifest_recipe`. Raises KeyError, TypeError, CompactEdgeError."""
        del imatrix
        return cls.resolve(target, source, quant=recipe["quant"])

    def manifest_recipe(self, *, has_imatrix: bool) -> dict[str, Any]:
        """What makes the file again, beside source, plan and importance matrix."""
        del has_imatrix
        return {"quant": self.quant}

    @property
    def short_name(self) -> str:
        """The part of a file's name where no other recipe of the release has the same: `Q4_0`, `cpu-int4`."""
        return self.quant

    @property
    def long_name(self) -> str:
        """The part of a file's name where another recipe has the same short one."""
        return self.short_name

    @property
    def uses_imatrix(self) -> bool:
        """Whether the file depends on an importance matrix, which a release measures once for each plan."""
        return False

    @classmethod
    def release_place(cls, title: str, part: str) -> str:
        """Name of the artifact in a release's folder: a file, or a folder."""
        return f"{title}-{part}{cls.suffix}" if cls.suffix else part

    @classmethod
    def made_with(cls, quant: str) -> dict[str, Any] | None:
        """Engine and build that an artifact's bytes depend on; None where only our own code decides them.

        Raises ToolUnavailableError, EngineCrashedError where the engine cannot be asked.
        """
        del quant
        return None
