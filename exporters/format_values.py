"""What goes in and out of an export format (`exporters.base`): requests, artifacts, measurements, options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from compact.calibration.calibration_set import Calibration
    from compact.pruning.budget import Sizes
    from compact.pruning.ranking import Ranking
    from compact.sources.model_source import ModelSource
    from exporters.llamacpp.engine import Speed

ORIGINAL, PRUNED = "original", "pruned"


class Whole(Protocol):
    """A whole number of a target."""

    @property
    def value(self) -> int: ...


class Target(Protocol):
    """What is asked of a device profile; `targets.profile.Profile` is one and describes the attributes."""

    @property
    def name(self) -> str: ...
    @property
    def quantization(self) -> str: ...
    @property
    def quantization_block32(self) -> str: ...
    @property
    def embedding_quant(self) -> str: ...
    @property
    def context_length(self) -> Whole: ...
    @property
    def execution_provider(self) -> str | None: ...
    @property
    def accuracy_level(self) -> Whole | None: ...
    @property
    def storage_budget_bytes(self) -> int | None: ...
    @property
    def memory_budget_bytes(self) -> int | None: ...


class Artifact(Protocol):
    """What every finished artifact says of itself.

    Attributes:
        path: the file that its runtime opens first.
        opened: what `Format.score` is given: the file, or its folder.
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
    def opened(self) -> Path: ...
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
class Variant:
    """A model before or after pruning: a checkpoint, a name for its content, and the artifact made from it."""

    label: str
    checkpoint: Path
    checkpoint_id: str
    artifact: Artifact


@dataclass(frozen=True)
class Measurements:
    """What a short run on this machine gave. It is not part of any manifest.

    Attributes:
        speed: prefill and decode of the artifact's runtime on the evaluation text, the median of three runs.
        characters_per_token: of the evaluation text with this variant's tokenizer.
        reply: answer to the prompt, None where none was asked for.
    """

    speed: Speed
    characters_per_token: float
    reply: str | None

    @property
    def prefill(self) -> float:
        """Tokens per second."""
        return self.speed.prefill_tokens / self.speed.prefill_seconds

    @property
    def decode(self) -> float:
        """Tokens per second."""
        return self.speed.decode_tokens / self.speed.decode_seconds

    def as_dict(self) -> dict[str, Any]:
        return {
            "resident_bytes": self.speed.resident_bytes,
            "prefill_tokens_per_second": self.prefill,
            "decode_tokens_per_second": self.decode,
            "decode_characters_per_second": self.decode * self.characters_per_token,
            "reply": self.reply,
        }


@dataclass(frozen=True)
class Request:
    """One artifact to make.

    Attributes:
        label: `pruned`, `original`, or another word for a checkpoint that is only exported.
        checkpoint: a standard checkpoint directory.
        checkpoint_id: names its content.
        name: model name, without size and type.
        description: one line for the file's metadata. None: the metadata have the name and the base model alone.
        published: whether the artifact will be in the output.
        source: the model that the user named.
        calibration: its texts are what the parity gate compares on.
        measures: whether an importance matrix may be measured on those texts.
        pre: `tokenizer.ggml.pre` of the source, None to take it from the tokenizer.
        plan_id: of the plan that the checkpoint was pruned by, for the metadata.
        unpruned: the source's checkpoint, for the gate; None where `checkpoint` is compared with nothing else.
    """

    label: str
    checkpoint: Path
    checkpoint_id: str
    name: str
    description: str | None
    published: bool
    source: ModelSource
    calibration: Calibration
    measures: bool = True
    pre: str | None = None
    plan_id: str | None = None
    unpruned: Path | None = None


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
class Flag:
    """An option of `build` and `export` that belongs to a format.

    Attributes:
        name: as the command line spells it, `--block-size`.
        help: what it says in `--help`.
        kind: `str`, `int`, `bool` or `Path`.
        section: heading in `--help`, None for the command's own options.
        export_help: what `export` says instead.
        commands: which of the two commands have it.
        multiple: whether it may be given several times.
        parse: makes the value of the text that was given. Raises UsageError.
    """

    name: str
    help: str
    kind: type = str
    section: str | None = None
    export_help: str | None = None
    commands: tuple[str, ...] = ("build", "export")
    multiple: bool = False
    parse: Callable[[str], Any] | None = None

    @property
    def key(self) -> str:
        """Its key among the choices of a format."""
        return self.name.removeprefix("--").replace("-", "_")


# Values of a format's flags, by their keys. A flag that was not given is None, False, () or missing.
Choices = Mapping[str, Any]


def is_given(value: Any) -> bool:
    """Whether the value of a flag was given."""
    return value is not None and value is not False and value != ()
