"""Writes a GGUF into a folder to publish: one file or its parts, and the additional files that the user requested."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from compact.base.errors import DamagedFileError
from compact.base.files import copy_hashed, sha256_file, write_text
from exporters.gguf.artifact import GgufArtifact

IMATRIX = "imatrix.gguf"


@dataclass(frozen=True)
class FileOptions:
    """Optional files.

    Attributes:
        save_imatrix: write the importance matrix in the format of `llama-quantize --imatrix`.
        modelfile: write a Modelfile for Ollama.
        split_max_bytes: split the artifact into parts with at most this many bytes of tensors; None does not split.
    """

    save_imatrix: bool = False
    modelfile: bool = False
    split_max_bytes: int | None = None


def place_artifact(
    folder: Path, artifact: GgufArtifact, checkpoint: Path, options: FileOptions, *, check: bool
) -> tuple[str, ...]:
    """Write the artifact and the requested additional files into a folder to publish.

    Args:
        folder: an empty directory.
        artifact: an artifact in the cache. Its sha256 is checked.
        checkpoint: checkpoint of the artifact, for the chat template of the Modelfile.
        options: files to write.
        check: open a split artifact with llama.cpp.

    Returns:
        Names of the artifact's files. llama.cpp opens the first one.

    Raises:
        DamagedFileError: the artifact changed in the cache, or it cannot be split.
        UsageError: a single tensor is larger than the maximum part size.
        GateError, EngineCrashedError: the parts do not make up the whole artifact.
        StorageError: the file system refused a file.
    """
    from exporters.gguf.split import split_gguf

    names: tuple[str, ...] = ()
    if options.split_max_bytes is not None:
        _require_sha256(artifact, sha256_file(artifact.path))
        names = tuple(path.name for path in split_gguf(artifact.path, folder, options.split_max_bytes))
        if names and check:
            from exporters.llamacpp.engine import LlamaEngine

            # llama.cpp reads the headers of all parts even with vocab_only.
            with LlamaEngine(folder / names[0], vocab_only=True):
                pass
    if not names:
        _require_sha256(artifact, copy_hashed(artifact.path, folder / artifact.path.name))
        names = (artifact.path.name,)
    if options.save_imatrix and artifact.imatrix is not None:
        from exporters.llamacpp.imatrix_files import write_imatrix

        write_imatrix(artifact.imatrix, folder / IMATRIX)
    if options.modelfile:
        from exporters.gguf.modelfile import NAME, modelfile

        write_text(folder / NAME, modelfile(artifact.path, checkpoint, names if len(names) > 1 else ()))
    return names


def check_files(artifact: GgufArtifact, options: FileOptions) -> None:
    """Check early that the artifact can be split. Raises the errors of `exporters.gguf.split.plan_parts`."""
    if options.split_max_bytes is not None:
        from compact.checkpoints.gguf_file import read_gguf
        from exporters.gguf.split import plan_parts

        plan_parts(read_gguf(artifact.path), options.split_max_bytes)


def _require_sha256(artifact: GgufArtifact, digest: str) -> None:
    if digest != artifact.sha256:
        raise DamagedFileError(
            f"{artifact.path}: damaged in the cache (its sha256 changed)", "delete the cache, or build with --no-cache"
        )
