"""What a build asks of an artifact format: to be made, opened, measured, checked and laid out.

One class a format (`format_gguf`, `format_onnx`); the pipeline and the files that are published know no other
difference between them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from compact.calibration import Calibration
from compact.errors import UsageError
from compact.plan import PrunePlan
from compact.progress import Progress
from compact.source import ModelSource

if TYPE_CHECKING:
    from compact.budget import Sizes
    from compact.cache import Cache
    from compact.evaluate import Evaluation
    from compact.ranking import Ranking
    from compact_edge.side import Measured, Side
    from exporters.gate import ParityReport
    from targets.profile import Profile

GGUF = "gguf"
ONNX = "onnx"
# The format that a profile's runtime opens.
FORMATS: Mapping[str, str] = {"llama.cpp": GGUF, "onnxruntime": ONNX}


class Artifact(Protocol):
    """What every finished artifact says of itself.

    Attributes:
        path: the file that its runtime opens first.
        title: its name, for the card.
        quant: its type, as the runtime's users name it.
        sha256: names its content.
        size_bytes: of the model's files.
        n_params: parameters of the checkpoint.
        bits_per_weight: real ones, over all tensors.
        embedding_type: the type that the token embedding really has.
    """

    @property
    def path(self) -> Path: ...
    @property
    def title(self) -> str: ...
    @property
    def quant(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def n_params(self) -> int: ...
    @property
    def bits_per_weight(self) -> float: ...
    @property
    def embedding_type(self) -> str: ...


@dataclass(frozen=True)
class Request:
    """One artifact to make.

    Attributes:
        label: `pruned` or `original`.
        checkpoint: a standard checkpoint directory.
        checkpoint_id: names its content.
        name: model name, without size and type.
        description: one line for the file's metadata.
        published: whether the artifact will lie in the output.
    """

    label: str
    checkpoint: Path
    checkpoint_id: str
    name: str
    description: str
    published: bool
    source: ModelSource
    plan: PrunePlan
    calibration: Calibration


@dataclass(frozen=True)
class SizeRequest:
    """An artifact whose size is asked for before its checkpoint is made.

    Attributes:
        source: the unpruned model.
        ranking: which tokens stay at which vocabulary size.
        name: model name, without size and type.
        description: the longest that the file's metadata may hold.
    """

    source: ModelSource
    ranking: Ranking
    name: str
    description: str


class ArtifactSizes(Protocol):
    """Bytes of an artifact at given sizes."""

    def file_bytes(self, sizes: Sizes) -> int:
        """Of the model's files; never less than they will have."""

    def bytes_per_token(self, sizes: Sizes) -> int:
        """Of the weights that decoding one token reads."""


@dataclass(frozen=True)
class OnnxChoices:
    """What a user can say of ONNX beside the type; None takes the target's or the builder's."""

    algo_config: str | None = None
    block_size: int | None = None
    accuracy_level: int | None = None
    execution_provider: str | None = None

    def named(self) -> list[str]:
        """The options that were given, as the command spells them."""
        given = {
            "--algo-config": self.algo_config,
            "--block-size": self.block_size,
            "--accuracy-level": self.accuracy_level,
            "--execution-provider": self.execution_provider,
        }
        return [name for name, value in given.items() if value is not None]


@dataclass(frozen=True)
class Format(ABC):
    """One artifact format of one build, its type settled for the model at hand."""

    profile: Profile
    name: ClassVar[str]
    engine: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]

    @property
    @abstractmethod
    def quant(self) -> str:
        """The type, as its runtime's users name it."""

    @property
    @abstractmethod
    def channel_grid(self) -> int:
        """What the number of kept FFN channels should be a multiple of."""

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

    @abstractmethod
    def notes(self, artifact: Any) -> list[str]:
        """What the user should hear of the type."""

    @abstractmethod
    def evaluate(self, artifact: Any, text: str, *, threads: int, progress: Progress, label: str) -> Evaluation | None:
        """Bits per byte through the runtime; None where the runtime cannot open the artifact on this machine."""

    @abstractmethod
    def measure(self, side: Side, text: str, prompt: str | None, threads: int) -> Measured | None:
        """A short run: speed, memory and the reply to a prompt; None as for `evaluate`."""

    @abstractmethod
    def baseline_kl(self, side: Side, calibration: Calibration) -> float | None:
        """Mean KL of an unpruned artifact, which fits in memory whole, to its float32 model.

        None where the strict checks judge the type, or the runtime cannot open the artifact on this machine.
        """

    @abstractmethod
    def check(self, side: Side, request: Request, baseline_kl: float | None, progress: Progress) -> ParityReport:
        """The parity gate of the artifact that `request` made."""

    @abstractmethod
    def place(self, folder: Path, side: Side, *, check: bool) -> tuple[str, ...]:
        """Write the artifact's files into a folder that is about to be published; returns the model's, first first."""

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """The format's options for the manifest."""

    @abstractmethod
    def describe(self, artifact: Any, names: Sequence[str]) -> dict[str, Any]:
        """The artifact for the manifest."""

    @abstractmethod
    def usage(self, names: Sequence[str], checkpoint: Path, title: str) -> tuple[str, list[str]]:
        """For the card: (`console` or `python`, lines that run the artifact in its own folder)."""

    def commands(self, folder: Path, names: Sequence[str], checkpoint: Path) -> list[str]:
        """Command lines that run the published artifact."""
        del folder, names, checkpoint
        return []

    def opened(self, folder: Path, names: Sequence[str]) -> Path:
        """What a command of ours is given to open the published artifact: its file, or its folder."""
        return folder / names[0]

    def model_files(self, names: Sequence[str]) -> Sequence[str]:
        """Those of the published files whose size the card states, the one to open first."""
        return names[:1]

    def card_notes(self, names: Sequence[str]) -> list[str]:
        """Lines of the model card about the files."""
        del names
        return []


def size_not_known(form: str) -> UsageError:
    """The error of `--fit` with a format whose size only making it tells."""
    return UsageError(
        f"--fit: the size of an artifact of the format {form} is not known before it is made",
        "give a --ratio instead, or build the gguf with --fit first",
    )


@dataclass(frozen=True)
class Quants:
    """`--quant TYPE` or `--quant FORMAT=TYPE`, as given.

    Attributes:
        plain: the type of the only format.
        named: types by format.
    """

    plain: str | None = None
    named: Mapping[str, str] = field(default_factory=dict)

    def of(self, form: str) -> str | None:
        """The type asked for a format, None for the target's."""
        return self.named.get(form, self.plain)


def parse_quants(values: Sequence[str], formats: Sequence[str]) -> Quants:
    """Read `--quant` for a build of `formats`.

    Raises:
        UsageError: a type without its format where there are several, a format twice, or one that is not built.
    """
    plain: str | None = None
    named: dict[str, str] = {}
    for value in values:
        form, separator, quant = value.partition("=")
        if not separator:
            if plain is not None:
                raise UsageError(f"--quant {value}: a type was given already", "give one a format: --quant gguf=Q8_0")
            plain = value
        elif form not in formats or not quant:
            known = ", ".join(f"--quant {name}=TYPE" for name in formats)
            raise UsageError(f"--quant {value}: no format of this build", f"write {known}")
        elif form in named:
            raise UsageError(f"--quant {value}: {form} has the type {named[form]} already", "give it once")
        else:
            named[form] = quant
    if plain is not None and (len(formats) > 1 or named):
        known = " ".join(f"--quant {name}=TYPE" for name in formats)
        raise UsageError(f"--quant {plain}: of which format?", f"write {known}")
    return Quants(plain, named)
