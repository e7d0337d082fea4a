"""The interface of an export format. Each format is a class with this interface, listed in `exporters.registry`.

Commands, builds and releases use formats only through it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from compact.base.errors import UsageError
from exporters.format_values import (
    Artifact,
    ArtifactSizes,
    Choices,
    Flag,
    Measurements,
    Recipe,
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


def size_not_known(name: str, option: str = "--fit") -> UsageError:
    """Return the error of a limit, such as `--fit`, for a format whose size cannot be predicted."""
    return UsageError(
        f"{option}: the size of an artifact of the format {name} is not known before it is made",
        f"give a --ratio instead, or build the gguf with {option} first",
    )


@dataclass(frozen=True)
class Format(ABC):
    """One artifact format of a build, with its type resolved for a model.

    Attributes:
        target: the device profile.
        name: name of the format and of its folder in a build. A release folder's name ends with it in upper case.
        label: name in messages.
        runtime: name of its runtime in a profile.
        engine: engine that measures it on this machine.
        engine_package: package whose version identifies the engine; None if there is no such package.
        packages: packages whose versions affect the bytes or figures of an artifact.
        profile: name or path of a profile without budgets. `export` uses its settings.
        export_quant: type for `export` without `--quant`, the one with the least loss.
        suffix: file ending of the artifact; empty if the artifact is a folder.
        flags: command-line options of the format.
        predicts_size: whether `sizes` works, so that `--fit` is possible.
        file_types: file types that a profile may name -> number that row lengths must be a multiple of.
        tensor_types: the same for the type of the token embedding, and for rows that do not fill whole blocks.
        providers: execution providers that a profile may name; empty if it names none.
        profile_keys: profile keys that are valid only for this runtime.
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

    # Class methods that work before a model is opened.

    @classmethod
    @abstractmethod
    def quants(cls) -> tuple[str, ...]:
        """Return the types that an artifact can have."""

    @classmethod
    def embedding_types(cls, quantization: str) -> Sequence[str]:
        """Return the token embedding types that a profile may name for files of type `quantization`."""
        del quantization
        return tuple(cls.tensor_types)

    @classmethod
    def quant_report(cls) -> dict[str, Any]:
        """Return the part of `--quant list --json` for this format."""
        return {cls.name: {"types": [{"name": name} for name in cls.quants()]}}

    @classmethod
    def quant_tables(cls) -> Sequence[QuantTable]:
        """Return the tables that `--quant list` prints for this format."""
        from exporters.llamacpp.quant_list import Column, QuantTable

        column = Column(f"{cls.label} type")
        return [QuantTable((column,), [(name,) for name in cls.quants()])]

    @classmethod
    def check_choices(cls, target: Target, quant: str | None, choices: Choices) -> None:
        """Check the choices before the model is opened. Raises UsageError, DataError."""
        del target, choices
        if quant is not None and quant not in cls.quants():
            raise UsageError(f"{cls.label} type {quant[:40]!r} is not known", f"one of: {', '.join(cls.quants())}")

    @classmethod
    def check_export(cls, target: Target, quant: str, choices: Choices) -> None:
        """Run `check_choices` for the command `export`."""
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
        """Return the format for a model. The choices of the user take precedence over those of the target.

        Args:
            target: the device profile.
            source: the unpruned model.
            quant: requested type; None for the type of the target.
            choices: values of the format's flags.
            intermediate_size: final `intermediate_size`, if the user gave it.

        Raises:
            CompactEdgeError: the format cannot hold the model, or a package is missing.
        """

    @classmethod
    def recipes(cls, target: Target, source: ModelSource, choices: Choices) -> Sequence[Recipe]:
        """Return the types that a search tries for a model. The user's choices stay as they are."""
        del target, source, choices
        return ()

    @classmethod
    def measured_recipes(
        cls,
        target: Target,
        request: Request,
        choices: Choices,
        cache: Cache,
        progress: Progress,
        *,
        also: Sequence[Recipe] = (),
    ) -> Sequence[Recipe]:
        """Return `also` and `recipes` for the unpruned model, with their errors if the format can measure them."""
        del cache, progress
        return [*also, *cls.recipes(target, request.source, choices)]

    @property
    def own_recipe(self) -> Recipe | None:
        """The recipe of this type. None if the format cannot measure its errors."""
        return None

    def for_trial(
        self, kept_channels: Sequence[Sequence[int]], request: Request, work: Path, cache: Cache, progress: Progress
    ) -> Self:
        """Return the format for a quick trial of a pruned model. It may write files into `work`."""
        del kept_channels, request, work, cache, progress
        return self

    @property
    @abstractmethod
    def quant(self) -> str:
        """The type, with its usual name in the runtime."""

    @property
    def channel_grid(self) -> int:
        """The number of kept FFN channels should be a multiple of this."""
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
        """Return the versions of the packages that affect the bytes or figures of an artifact."""
        from importlib.metadata import version  # a slow import, which `--help` does not need

        return {package: version(package) for package in self.packages}

    @abstractmethod
    def make(self, request: Request, cache: Cache, progress: Progress) -> Artifact:
        """Make the artifact, or return it from the cache."""

    def sizes(self, request: SizeRequest) -> ArtifactSizes:
        """Predict the artifact size at given sizes. Raises UsageError if the format cannot."""
        del request
        raise size_not_known(self.name)

    def notes(self, artifact: Any) -> list[str]:
        """Return notes for the user about the type."""
        del artifact
        return []

    # Opening an artifact of this build, or one that the user names.

    @classmethod
    @abstractmethod
    def recognises(cls, model: str) -> Path | None:
        """Return the path to open if `model` names an artifact of this format, otherwise None.

        Raises CompactEdgeError if a file looks like an artifact but is not one.
        """

    @classmethod
    def with_pre(cls, path: Path, pre: str) -> type[Format]:
        """Return the class that opens an artifact with another pre-tokenizer (`--pre`).

        Raises UsageError if the format has no such setting, or the name is not valid.
        """
        raise UsageError(f"--pre {pre[:60]}: {path.name} is {cls.label}, with its own tokenizer", "leave it out")

    @classmethod
    def opening_notes(cls, path: Path) -> list[str]:
        """Return notes for the user about an artifact whose figures would mislead."""
        del path
        return []

    @classmethod
    @abstractmethod
    def open(cls, path: Path, *, threads: int, window: int | None = None) -> AbstractContextManager[TextScorer]:
        """Open an artifact with a context of one window, at most the context of the model."""

    @classmethod
    @abstractmethod
    def pieces(cls, path: Path) -> TokenPieces:
        """Return the tokens of an artifact's vocabulary."""

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
        """Measure bits per byte of an artifact in its runtime.

        It uses the artifact's own tokenizer, and the same windows as for a checkpoint.
        """

    @classmethod
    def open_for_tasks(cls, path: Path, *, threads: int, batch_size: int) -> Runtime:
        """Open an artifact for `eval --tasks`. Raises UsageError if the format cannot score tasks."""
        del threads, batch_size
        raise UsageError(f"{path.name}: the format {cls.name} cannot score tasks", "score the checkpoint instead")

    def evaluate(
        self, artifact: Artifact, text: str, *, threads: int, progress: Progress, label: str
    ) -> Evaluation | None:
        """Return `score` of an artifact; None if the runtime cannot open it on this machine."""
        return self.score(artifact.opened, text, threads=threads, progress=progress, label=label)

    def measure(self, variant: Variant, text: str, prompt: str | None, threads: int) -> Measurements | None:
        """Measure speed and memory in a short run, and get the reply to a prompt. None as for `evaluate`."""
        del variant, text, prompt, threads
        return None

    # The parity gate.

    def baseline_kl(self, variant: Variant, calibration: Calibration) -> float | None:
        """Measure the mean KL of an unpruned artifact to its float32 model. The model must fit in memory.

        Returns None if the strict checks apply to the type, or if the runtime cannot open the artifact on this machine.
        """
        del variant, calibration
        return None

    @abstractmethod
    def check(self, variant: Variant, request: Request, baseline_kl: float | None, progress: Progress) -> ParityReport:
        """Run the parity gate on the artifact of `request`."""

    # Publishing.

    @abstractmethod
    def place(self, folder: Path, variant: Variant, *, check: bool) -> tuple[str, ...]:
        """Write the artifact's files into a folder to publish. Return their names; the file to open comes first."""

    def options(self) -> dict[str, Any]:
        """Return the options of the format for the manifest."""
        return {"quant": self.quant}

    def describe(self, artifact: Any, names: Sequence[str]) -> dict[str, Any]:
        """Return facts about the artifact for the manifest."""
        del artifact, names
        return {}

    def export_figures(self, artifact: Any) -> dict[str, Any]:
        """Return the fields of `export --json` besides type and size."""
        return {"sha256": artifact.sha256}

    @abstractmethod
    def usage(self, names: Sequence[str], checkpoint: Path, title: str) -> tuple[str, list[str]]:
        """Return (`console` or `python`, lines that run the artifact in its own folder) for the card."""

    def commands(self, folder: Path, names: Sequence[str], checkpoint: Path) -> list[str]:
        """Return command lines that run the published artifact."""
        del folder, names, checkpoint
        return []

    def published(self, folder: Path, names: Sequence[str]) -> Path:
        """Return the path that our commands take for the published artifact: its file or its folder."""
        return folder / names[0] if self.suffix else folder

    def model_files(self, names: Sequence[str]) -> Sequence[str]:
        """Return the published files that the card lists with their total size. The file to open comes first."""
        return names[:1]

    def card_notes(self, names: Sequence[str]) -> list[str]:
        """Return lines about the files for the model card."""
        del names
        return []

    # Releases: targets that share files, and rebuilding a file.

    @classmethod
    def release_recipe(cls, target: Target, quant: str | None) -> dict[str, Any]:
        """Return the settings that decide a file besides model, plan and `quant`, as plain values.

        `quant` is None for the type of the target. Raises UsageError if the target excludes the type.
        """
        return {"quantization": target.quantization} if quant is None else {}

    @classmethod
    def recipe_label(cls, recipe: Mapping[str, Any]) -> str:
        """Return a label for a recipe. It is the type or ends in `-TYPE`. Several recipes may have the same label."""
        return str(recipe["quant"] or recipe["quantization"])

    @classmethod
    def from_release(cls, recipe: Mapping[str, Any], target: Target, source: ModelSource) -> Self:
        """Return the format of a release's recipe.

        A plan depends on the channel grid, so this must work without the packages of the runtime. Raises
        CompactEdgeError if the format cannot hold the model.
        """
        return cls.resolve(target, source, quant=recipe["quant"])

    @classmethod
    def from_manifest(
        cls, recipe: Mapping[str, Any], target: Target, source: ModelSource, imatrix: Path | None = None
    ) -> Self:
        """Return the format for a `manifest_recipe`. Raises KeyError, TypeError, CompactEdgeError."""
        del imatrix
        return cls.resolve(target, source, quant=recipe["quant"])

    def manifest_recipe(self, *, has_imatrix: bool) -> dict[str, Any]:
        """Return the settings to rebuild the file, besides source, plan and importance matrix."""
        del has_imatrix
        return {"quant": self.quant}

    @property
    def short_name(self) -> str:
        """The part of a file name if it is unique within the release, such as `Q4_0` or `cpu-int4`."""
        return self.quant

    @property
    def long_name(self) -> str:
        """The part of a file name if another recipe has the same `short_name`."""
        return self.short_name

    @property
    def uses_imatrix(self) -> bool:
        """Whether the file depends on an importance matrix. A release measures one per plan."""
        return False

    @classmethod
    def release_place(cls, title: str, part: str) -> str:
        """Return the name of the artifact in a release folder, a file or a folder."""
        return f"{title}-{part}{cls.suffix}" if cls.suffix else part

    def made_with(self) -> dict[str, Any] | None:
        """Return the engine and build that an artifact's bytes depend on; None if only our own code writes them.

        Raises ToolUnavailableError, EngineCrashedError if the engine does not answer.
        """
        return None
