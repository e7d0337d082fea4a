"""Makes a GGUF in the cache from a checkpoint directory: float file, importance matrix, quantization.

The cache key of each step contains all inputs of the step. A build with another quantization reuses the importance
matrix, and an identical build reuses everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compact.architectures.table import family_of
from compact.base.cache import Cache
from compact.base.devices import default_threads
from compact.base.errors import UsageError
from compact.base.files import read_json_object, sha256_file, sha256_json
from compact.base.progress import SILENT, Progress
from compact.calibration.calibration_set import retokenise
from compact.checkpoints.names import CONFIG, TOKENIZER_MODEL
from compact.checkpoints.shards import read_index
from compact.vocabulary.chat_templates import named_template_hashes
from exporters.gguf.type_choice import writes_directly
from exporters.gguf_writer.metadata import GgufMetadata
from exporters.gguf_writer.write import Quant, artifact_name, write_gguf
from exporters.llamacpp.header import read_header
from exporters.llamacpp.imatrix import Imatrix
from exporters.llamacpp.quant_types import FALLBACK_SHARE, TRAINED_ONLY, QuantSummary, quant_named, summarize

if TYPE_CHECKING:
    from compact.sources.model_source import ModelSource

IMATRIX_CHUNK = 512  # tokens per sequence, as in llama.cpp's own tool
# Increase this when the bytes of an artifact change for equal inputs. Older cache entries are then not used.
_VERSION = 4


@dataclass(frozen=True)
class Export:
    """The inputs of a GGUF.

    Attributes:
        checkpoint: a standard checkpoint directory.
        checkpoint_id: sha256 of its content.
        quant: type, with its llama.cpp name.
        name: model name for file name and metadata, without size and type.
        pre: `tokenizer.ggml.pre`; None to derive it from the tokenizer.
        embedding_quant: type of `token_embd` (and of the tied head); None for llama.cpp's choice.
        tensor_types: tensor name -> type, for a mix of types. Empty: the mix that llama.cpp calls `quant`.
        imatrix_file: file with an importance matrix, used instead of measuring one.
        texts, texts_id: calibration texts for the importance matrix, and their id.
        texts_name: name of the texts in the metadata of the matrix.
        with_imatrix: measure the matrix even if the type does not use it.
        metadata: `general.*` keys.
    """

    checkpoint: Path
    checkpoint_id: str
    quant: str
    name: str
    pre: str | None = None
    embedding_quant: str | None = None
    tensor_types: Mapping[str, str] = field(default_factory=dict)
    imatrix_file: Path | None = None
    texts: tuple[str, ...] = ()
    texts_id: str = ""
    texts_name: str = ""
    with_imatrix: bool = False
    metadata: GgufMetadata = field(default_factory=GgufMetadata)


@dataclass(frozen=True)
class GgufArtifact:
    """A finished GGUF in the cache.

    Attributes:
        path: the file.
        quant: its type.
        sha256, size_bytes: hash and size of the file.
        n_params: number of parameters of the checkpoint.
        summary: actual bits per weight, and the tensors that fell back to a larger type.
        imatrix_id: sha256 of the importance matrix that the file uses, or None.
        embedding_type: actual type of `token_embd`.
        imatrix: importance matrix that the file uses, or that was measured because of `Export.with_imatrix`.
    """

    path: Path
    quant: str
    sha256: str
    size_bytes: int
    n_params: int
    summary: QuantSummary
    imatrix_id: str | None
    embedding_type: str
    imatrix: Imatrix | None = field(default=None, compare=False, repr=False)

    @property
    def opened(self) -> Path:
        """The path that our engine opens."""
        return self.path

    @property
    def title(self) -> str:
        """The file name without its ending."""
        return self.path.stem

    @property
    def bits_per_weight(self) -> float:
        """Actual bits per weight over all tensors."""
        return self.summary.bits_per_weight


def make_artifact(export: Export, cache: Cache, progress: Progress = SILENT) -> GgufArtifact:
    """Make the GGUF, or return it from the cache.

    Raises:
        UsageError: the type needs an importance matrix, and there is no text to measure it on.
        CompactEdgeError: errors of the writer, the quantizer and the checks of the checkpoint.
    """
    chosen = quant_named(export.quant)
    measured: Imatrix | None = None
    embedding = export.embedding_quant
    direct = writes_directly(chosen, embedding, export.tensor_types)
    if not direct and chosen.is_float:
        raise UsageError(
            f"--embedding-quant {embedding}: {chosen.name} files have a single type",
            "leave it out, or choose another --quant",
        )
    if not direct or export.with_imatrix:
        measured = importance_of(export, cache, progress)
    matrix = None if direct else measured
    n_params = sum(ref.n_elements for ref in read_index(export.checkpoint).values())
    name = artifact_name(export.name, n_params, chosen.name)
    key = sha256_json(
        {
            "version": _VERSION,
            "checkpoint": export.checkpoint_id,
            "quant": chosen.name,
            "embedding": embedding,
            **({"tensor_types": dict(export.tensor_types)} if export.tensor_types else {}),
            "imatrix": matrix.id if matrix is not None else None,
            "metadata": _describe(export.metadata),
            "name": name,
            "pre": export.pre,
            "engines": {package: version(package) for package in ("gguf", "llama-cpp-python")},
        }
    )
    size = 4 * n_params

    def make(work: Path) -> None:
        if direct:
            only: Quant = chosen.name  # type: ignore[assignment]  # QUANTS marks the names that are written directly
            write_gguf(
                export.checkpoint, work / name, only, pre=export.pre, metadata=export.metadata, progress=progress
            )
            return
        from exporters.llamacpp.quantize import quantize_gguf

        source = work / "float.gguf"
        lossless = lossless_type(export.checkpoint)
        write_gguf(export.checkpoint, source, lossless, pre=export.pre, metadata=export.metadata, progress=progress)
        quantize_gguf(
            source,
            work / name,
            chosen.name,
            imatrix=matrix,
            embedding_quant=embedding,
            tensor_types=export.tensor_types,
            n_threads=default_threads(),
            progress=progress,
        )
        source.unlink()

    path = cache.get_or_make("gguf", key, make, needed_bytes=size) / name
    header = read_header(path)
    return GgufArtifact(
        path=path,
        quant=chosen.name,
        sha256=cache.recorded_sha256("gguf", key, name),
        size_bytes=path.stat().st_size,
        n_params=n_params,
        summary=summarize(
            header.model_shape(str(path)),
            chosen.name,
            embedding_quant=embedding,
            tensor_types=export.tensor_types,
            has_imatrix=matrix is not None,
        ),
        imatrix_id=matrix.id if matrix is not None else None,
        embedding_type=next(tensor.type for tensor in header.tensors if tensor.name == "token_embd.weight"),
        imatrix=measured,
    )


def lossless_type(checkpoint: Path) -> Quant:
    """Return the float type that stores a checkpoint exactly: F16 or BF16 if all tensors have it, otherwise F32."""
    types = {ref.dtype for ref in read_index(checkpoint).values()}
    if types == {"F16"}:
        return "F16"
    return "BF16" if types == {"BF16"} else "F32"


def importance_of(export: Export, cache: Cache, progress: Progress = SILENT) -> Imatrix | None:
    """Return the importance matrix of an export: the given file, or one measured on its texts; None without both.

    Raises UsageError if the type needs a matrix or the user requested it, and there is neither a file nor a text.
    """
    from exporters.llamacpp.imatrix_files import read_imatrix, write_imatrix
    from exporters.llamacpp.imatrix_torch import collect

    if export.imatrix_file is not None:
        return read_imatrix(export.imatrix_file)
    if not export.texts:
        if export.with_imatrix or quant_named(export.quant).needs_imatrix:
            asking = "--save-imatrix" if export.with_imatrix else f"--quant {export.quant}"
            raise UsageError(f"{asking}: needs an importance matrix", "give --calibration TEXT or --imatrix FILE")
        return None
    key = sha256_json({"version": _VERSION, "checkpoint": export.checkpoint_id, "texts": export.texts_id})

    def make(work: Path) -> None:
        config = read_json_object(export.checkpoint / CONFIG)
        sequences = retokenise(export.texts, export.checkpoint, sequence_length=IMATRIX_CHUNK)
        matrix = collect(
            export.checkpoint, sequences, family=family_of(config, str(export.checkpoint / CONFIG)), progress=progress
        )
        write_imatrix(matrix, work / "imatrix.gguf")

    matrix = read_imatrix(cache.get_or_make("imatrix", key, make) / "imatrix.gguf")
    return replace(matrix, datasets=(export.texts_name,)) if export.texts_name else matrix


def metadata_of(source: ModelSource, name: str, description: str | None, plan_id: str | None) -> GgufMetadata:
    """Return the `general.*` keys of an artifact. The arguments are fields of a `Request`."""
    from exporters.card import base_model_of, carried_to_gguf

    return GgufMetadata(
        name=name,
        base_model=source.hub_id or base_model_of(source.directory),
        description=description,
        card={} if description is None else carried_to_gguf(source.directory),
        extra={} if plan_id is None else {"compact_edge.plan_id": plan_id},
    )


def _describe(metadata: GgufMetadata) -> dict[str, Any]:
    return {
        "name": metadata.name,
        "base_model": metadata.base_model,
        "description": metadata.description,
        "quantized_by": metadata.quantized_by,
        "card": dict(metadata.card),
        "extra": dict(metadata.extra),
    }


def fallback_note(artifact: GgufArtifact) -> str | None:
    """Return a note if more than 5% of the bytes have a larger type than requested, otherwise None."""
    summary = artifact.summary
    if summary.fallback_share <= FALLBACK_SHARE:
        return None
    kinds = sorted({f"{wanted} -> {got}" for wanted, got in summary.fallbacks.values()})
    hint = f"; --quant {summary.suggestion} fits these rows" if summary.suggestion else ""
    return (
        f"{artifact.quant}: {summary.fallback_share:.0%} of the bytes fell back to a larger type ({', '.join(kinds)}), "
        f"{summary.bits_per_weight:.2f} bits per weight{hint}"
    )


def artifact_notes(artifact: GgufArtifact) -> list[str]:
    """Return notes for the user about a fallback that costs size, or a type that suits few models."""
    notes = [note] if (note := fallback_note(artifact)) is not None else []
    if artifact.quant in TRAINED_ONLY:
        notes.append(f"{artifact.quant} is for models trained with binary or ternary weights; others become noise")
    return notes


def checkpoint_id(directory: Path) -> str:
    """Return the sha256 of the content of a checkpoint directory."""
    names = sorted(
        path
        for path in directory.iterdir()
        if path.suffix in {".json", ".safetensors", ".jinja"} or path.name == TOKENIZER_MODEL
    )
    return sha256_json({path.name: sha256_file(path) for path in names} | named_template_hashes(directory))
