"""The inputs and outputs of an export format (`exporters.base`): requests, artifacts, measurements, options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from compact.calibration.calibration_set import Calibration
    from compact.pruning.budget import Sizes
    from compact.pruning.ranking import Ranking
    from compact.sources.model_source import ModelSource
    from exporters.llamacpp.engine import Speed

ORIGINAL, PRUNED = "original", "pruned"
# Values of a format's flags by key. Without the flag, the value is None, False, () or missing.
Choices = Mapping[str, Any]


class Whole(Protocol):
    """A whole number in a device profile."""

    @property
    def value(self) -> int: ...


class Features(Protocol):
    """The instruction-set features of a device profile."""

    @property
    def features(self) -> tuple[str, ...]: ...


class Target(Protocol):
    """The attributes of a device profile that formats use. `targets.profile.Profile` describes them."""

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
    def isa(self) -> Features | None: ...
    @property
    def execution_provider(self) -> str | None: ...
    @property
    def accuracy_level(self) -> Whole | None: ...
    @property
    def storage_budget_bytes(self) -> int | None: ...
    @property
    def memory_budget_bytes(self) -> int | None: ...


class Artifact(Protocol):
    """A finished artifact.

    Attributes:
        path: file that its runtime opens first.
        opened: path for `Format.score`: the file or its folder.
        title: name on the card.
        quant: type, with its usual name in the runtime.
        sha256: hash of the content.
        size_bytes: total size of the model's files.
        n_params: number of parameters of the checkpoint.
        bits_per_weight: actual average over all tensors.
        embedding_type: actual type of the token embedding.
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
    """A model before or after pruning: its checkpoint, the hash of the checkpoint, and its artifact."""

    label: str
    checkpoint: Path
    checkpoint_id: str
    artifact: Artifact


@dataclass(frozen=True)
class Measurements:
    """The results of a short run on this machine. They are not part of a manifest.

    Attributes:
        speed: prefill and decode of the artifact's runtime on the evaluation text, the median of three runs.
        characters_per_token: average on the evaluation text with this variant's tokenizer.
        reply: reply to the prompt; None without a prompt.
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
        label: `pruned`, `original`, or another label for a checkpoint that is only exported.
        checkpoint: a standard checkpoint directory.
        checkpoint_id: hash of its content.
        name: model name, without size and type.
        description: one line for the file's metadata. With None, the metadata contain only name and base model.
        published: whether the artifact will be in the output.
        source: the model that the user named.
        calibration: the parity gate compares the models on its texts.
        measures: whether an importance matrix may be measured on those texts.
        pre: `tokenizer.ggml.pre` of the source; None to derive it from the tokenizer.
        plan_id: id of the plan for the metadata; None for an unpruned checkpoint.
        unpruned: checkpoint of the source, for the gate; None without such a comparison.
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
    """An artifact whose size is predicted before its checkpoint exists.

    Attributes:
        source: the unpruned model.
        ranking: decides the tokens that stay at each vocabulary size.
        name: model name, without size and type.
        description: longest possible description in the file's metadata.
        shared: values that the types of a format share. A format keeps them here, so that predicting the sizes of many
            types reads the tokenizer once.
    """

    source: ModelSource
    ranking: Ranking
    name: str
    description: str
    shared: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)


class ArtifactSizes(Protocol):
    """Predicted figures of an artifact at given sizes."""

    def file_bytes(self, sizes: Sizes) -> int:
        """Return an upper bound for the total size of the model's files."""

    def bytes_per_token(self, sizes: Sizes) -> int:
        """Return the bytes of weights that are read to decode one token."""

    def weights_per_token(self, sizes: Sizes) -> int:
        """Return the number of weights that are multiplied in prefill for one token. The LM head is not counted."""

    def memory_bytes(self, sizes: Sizes, context: int) -> int:
        """Estimate the resident memory of the running model with a key-value cache for `context` positions."""

    def kv_bytes(self, context: int) -> int:
        """Return the bytes of the key-value cache for `context` positions. They do not depend on the sizes."""


@dataclass(frozen=True)
class Recipe:
    """How the weights of an artifact are stored. `Format.resolve` takes both values.

    Attributes:
        quant: type of the artifact, with its usual name in the runtime.
        choices: values of the format's flags that change the types of some tensors.
        name: short name for tables, such as `Q8_0, embedding IQ4_NL`.
        body_error: mean relative error of the body's matrices on the unpruned model; None if it is not known.
        head_error: the same for embedding and head.
    """

    quant: str
    choices: Choices
    name: str
    body_error: float | None = None
    head_error: float | None = None


@dataclass(frozen=True)
class Flag:
    """An option of `build` and `export` that belongs to a format.

    Attributes:
        name: name on the command line, such as `--block-size`.
        help: text in `--help`.
        kind: `str`, `int`, `bool` or `Path`.
        section: heading in `--help`; None for the command's own options.
        export_help: text for `export`, if it differs from `help`.
        commands: commands that have the option.
        multiple: whether the user may repeat it.
        parse: converts the given text to the value. Raises UsageError.
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
        """The key in `Choices`."""
        return self.name.removeprefix("--").replace("-", "_")


def is_given(value: Any) -> bool:
    """Return whether the user gave the flag."""
    return value is not None and value is not False and value != ()
