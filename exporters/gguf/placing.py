"""What lies in a published folder for the artifact itself: one file or its parts, and what was asked for beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from compact.base.errors import DamagedFileError
from compact.base.files import copy_hashed, sha256_file, write_text
from exporters.gguf.artifact import GgufArtifact

IMATRIX = "imatrix.gguf"


@dataclass(frozen=True)
class FileOptions:
    """Files that a user can ask for.

    Attributes:
        save_imatrix: the importance matrix, as `llama-quantize --imatrix` reads it.
        modelfile: a Modelfile for Ollama.
        split_max_bytes: cut the artifact into parts of at most this much of tensors; None leaves it whole.
    """

    save_imatrix: bool = False
    modelfile: bool = False
    split_max_bytes: int | None = None


def place_artifact(
    folder: Path, artifact: GgufArtifact, checkpoint: Path, options: FileOptions, *, check: bool
) -> tuple[str, ...]:
    """Write the artifact, and what was asked for beside it, into a folder that is about to be published.

    Args:
        folder: an empty directory.
        artifact: in the cache; checked against its sha256.
        checkpoint: what it was made from: the chat template of the Modelfile.
        options: what to write.
        check: let llama.cpp open the parts of a split artifact.

    Returns:
        Names of the artifact's files; the first is what llama.cpp opens.

    Raises:
        DamagedFileError: the artifact changed in the cache, or cannot be split.
        UsageError: a tensor alone is larger than a part may be.
        GateError, EngineCrashedError: the parts are not the whole.
        StorageError: the file system refused.
    """
    from exporters.gguf.split import split_gguf

    names: tuple[str, ...] = ()
    if options.split_max_bytes is not None:
        _require_sha256(artifact, sha256_file(artifact.path))
        names = tuple(path.name for path in split_gguf(artifact.path, folder, options.split_max_bytes))
        if names and check:
            from exporters.llamacpp.engine import LlamaEngine

            # llama.cpp reads the heads of all parts before it looks at the vocabulary.
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
    """Refuse early what cannot be published in the end. Raises as `exporters.gguf.split.plan_parts`."""
    if options.split_max_bytes is not None:
        from compact.checkpoints.gguf_file import read_gguf
        from exporters.gguf.split import plan_parts

        plan_parts(read_gguf(artifact.path), options.split_max_bytes)


def _require_sha256(artifact: GgufArtifact, digest: str) -> None:
    if digest != artifact.sha256:
        raise DamagedFileError(
            f"{artifact.path}: damaged in the cache (its sha256 changed)", "delete the cache, or build with --no-cache"
        )
