"""GGUF in a build: made by `exporters.gguf` and llama.cpp's quantizer, opened by llama.cpp."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from compact.calibration import Calibration
from compact.errors import DataError, UsageError
from compact.evaluate import Evaluation
from compact.progress import Progress
from compact.source import CONFIG, ModelSource
from compact.store import read_json_object
from compact_edge.artifact_files import FileOptions, check_files, place_artifact
from compact_edge.formats import GGUF, Format, Request, SizeRequest
from compact_edge.gguf_choice import chosen_types
from compact_edge.side import Measured, Side, evaluate_gguf, measure_gguf
from exporters.artifact import Artifact, Export, artifact_notes, make_artifact
from exporters.card import base_model_of, carried_to_gguf, has_chat_template
from exporters.engine import LlamaEngine
from exporters.gate import POSITIONS, ParityReport, mean_kl, reference_for
from exporters.gguf import GgufMetadata, check_exportable, window_note
from exporters.gguf_size import GgufSizes, gguf_sizes
from exporters.parity import check_artifact
from exporters.quant_types import ggml_type, grid, quant_named

if TYPE_CHECKING:
    from compact.cache import Cache
    from targets.profile import Profile

# Most positions that the card's command asks for: llama.cpp makes room for all of a model's own.
_CARD_CONTEXT = 4096


@dataclass(frozen=True)
class GgufFormat(Format):
    """A GGUF of one type.

    Attributes:
        type_name: the type, as llama.cpp names it.
        embedding: type of `token_embd`, None for llama.cpp's choice.
        asked_embedding: what the user asked for.
        imatrix: a ready importance matrix of the pruned model.
        files: what else the folder holds.
        window: what a user should know of the model's sliding window, None where the GGUF has it.
    """

    type_name: str
    embedding: str | None
    asked_embedding: str | None
    imatrix: Path | None
    files: FileOptions
    window: str | None
    name: ClassVar[str] = GGUF
    engine: ClassVar[str] = "llama.cpp"
    packages: ClassVar[tuple[str, ...]] = ("gguf", "llama-cpp-python", "torch", "transformers")

    @property
    def quant(self) -> str:
        return self.type_name

    @property
    def channel_grid(self) -> int:
        return grid(self.type_name)

    def make(self, request: Request, cache: Cache, progress: Progress) -> Artifact:
        source, calibration = request.source, request.calibration
        pruned = request.label == "pruned"
        export = Export(
            checkpoint=request.checkpoint,
            checkpoint_id=request.checkpoint_id,
            quant=self.type_name,
            name=request.name,
            pre=request.plan.pre,
            embedding_quant=self.embedding,
            # A ready importance matrix is of one model; the other side measures its own.
            imatrix_file=self.imatrix if pruned else None,
            texts=calibration.texts,
            texts_id=calibration.id,
            texts_name=calibration.label,
            with_imatrix=self.files.save_imatrix,
            metadata=_metadata(source, request.name, request.description, request.plan.id if pruned else None),
        )
        artifact = make_artifact(export, cache, progress)
        if request.published:
            check_files(artifact, self.files)
        return artifact

    def sizes(self, request: SizeRequest) -> GgufSizes:
        # A plan's id is as long as any sha256.
        longest = _metadata(request.source, request.name, request.description, request.source.id)
        return gguf_sizes(
            request.source,
            request.ranking.always,
            request.ranking.order,
            self.type_name,
            embedding_quant=self.embedding,
            # A build always has one: a file, or one measured on the calibration's text.
            has_imatrix=quant_named(self.type_name).uses_imatrix,
            metadata=longest,
        )

    def notes(self, artifact: Artifact) -> list[str]:
        return [*([] if self.window is None else [self.window]), *artifact_notes(artifact)]

    def evaluate(self, artifact: Artifact, text: str, *, threads: int, progress: Progress, label: str) -> Evaluation:
        return evaluate_gguf(artifact.path, text, threads=threads, progress=progress, label=label)

    def measure(self, side: Side, text: str, prompt: str | None, threads: int) -> Measured:
        return measure_gguf(side, text, prompt, threads)

    def baseline_kl(self, side: Side, calibration: Calibration) -> float | None:
        if side.artifact.quant == "F32":
            return None
        reference = reference_for(side.checkpoint, calibration.texts, greedy=False)
        with LlamaEngine(side.artifact.path, n_ctx=POSITIONS) as engine:
            return mean_kl(reference, engine)

    def check(self, side: Side, request: Request, baseline_kl: float | None, progress: Progress) -> ParityReport:
        return check_artifact(
            side.checkpoint,
            side.artifact.path,
            side.artifact.quant,
            request.calibration.texts,
            unpruned=request.source.directory,
            baseline_kl=baseline_kl,
            pre=request.plan.pre,
            progress=progress,
        )

    def place(self, folder: Path, side: Side, *, check: bool) -> tuple[str, ...]:
        assert isinstance(side.artifact, Artifact)
        return place_artifact(folder, side.artifact, side.checkpoint, self.files, check=check)

    def options(self) -> dict[str, Any]:
        return {
            "quant": self.type_name,
            "embedding_quant": self.asked_embedding,
            "save_imatrix": self.files.save_imatrix,
            "modelfile": self.files.modelfile,
            "split_max_bytes": self.files.split_max_bytes,
        }

    def describe(self, artifact: Artifact, names: Sequence[str]) -> dict[str, Any]:
        return {"parts": list(names) if len(names) > 1 else None, "imatrix_id": artifact.imatrix_id}

    def usage(self, names: Sequence[str], checkpoint: Path, title: str) -> tuple[str, list[str]]:
        positions = int(read_json_object(checkpoint / CONFIG).get("max_position_embeddings") or _CARD_CONTEXT)
        lines = [f"llama-cli -m {names[0]} -c {min(positions, _CARD_CONTEXT)} {_mode(checkpoint)}"]
        if self.files.modelfile:
            if len(names) > 1:
                lines.append(f"llama-gguf-split --merge {names[0]} {title}.gguf")
            lines.append("ollama create NAME -f Modelfile")
        return "console", lines

    def commands(self, folder: Path, names: Sequence[str], checkpoint: Path) -> list[str]:
        return [f"llama-cli -m {shlex.quote(str(folder / names[0]))} {_mode(checkpoint)}"]

    def card_notes(self, names: Sequence[str]) -> list[str]:
        if len(names) < 2:
            return []
        listed = ", ".join(f"`{name}`" for name in names)
        return [f"In {len(names)} parts; llama.cpp opens the first and finds the others beside it: {listed}."]


def _metadata(source: ModelSource, name: str, description: str, plan_id: str | None) -> GgufMetadata:
    return GgufMetadata(
        name=name,
        base_model=source.hub_id or base_model_of(source.directory),
        description=description,
        card=carried_to_gguf(source.directory),
        extra={} if plan_id is None else {"compact_edge.plan_id": plan_id},
    )


def _mode(checkpoint: Path) -> str:
    return "-cnv" if has_chat_template(checkpoint) else "-no-cnv -p 'Once upon a time'"


def check_gguf_options(quant: str | None, embedding_quant: str | None, imatrix: Path | None) -> None:
    """What can be refused before the model is opened. Raises UsageError and DataError."""
    if embedding_quant is not None:
        ggml_type(embedding_quant)
    if quant is not None:
        chosen = quant_named(quant)
        if imatrix is not None and not chosen.uses_imatrix:
            raise UsageError(f"--imatrix: {chosen.name} files use none", "leave it out, or choose a 4-bit type")
    if imatrix is not None and not imatrix.is_file():
        raise DataError(f"--imatrix {imatrix}: no such file", "leave it out to have one measured")


def gguf_format(
    profile: Profile,
    source: ModelSource,
    *,
    quant: str | None,
    embedding_quant: str | None,
    imatrix: Path | None,
    files: FileOptions,
) -> GgufFormat:
    """The format for a model: the type that the user named, else the profile's that fits the model's rows.

    Raises:
        CompactEdgeError: what a GGUF cannot hold is refused here, not after hours of calibration.
    """
    check_exportable(source.directory)
    name, embedding = chosen_types(profile, source.config, quant, embedding_quant)
    window = window_note(source.family, source.config)
    return GgufFormat(profile, name, embedding, embedding_quant, imatrix, files, window)
