"""Rewrites an unusual checkpoint folder as a usual one, if Transformers reads it or only one reading is possible.

Later stages and Transformers itself then read one kind of folder: `model.safetensors` or indexed shards, with the names
of the layout, and a config.json without settings for the original files. Examples: shards without an index, names of
the base class, an output matrix without the embedding that is tied to it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compact.architectures.family import Family
from compact.architectures.layout import check_shapes, expected_shapes
from compact.base.cache import Cache
from compact.base.errors import QuantizedCheckpointError
from compact.base.files import read_json_object, sha256_file, sha256_json, write_json
from compact.base.licences import legal_files
from compact.base.progress import SILENT, Progress
from compact.checkpoints.names import ADDED_TOKENS, CONFIG, NAMED_TEMPLATES, SMALL_FILES
from compact.checkpoints.safetensors_file import DTYPE_BYTES, TensorRef
from compact.checkpoints.shards import SINGLE, open_tensors
from compact.checkpoints.writers import TensorSpec, write_checkpoint
from compact.sources.class_choice import MODEL_TYPE
from compact.sources.media_tokens import leave_out, media_tokens
from compact.sources.quantization import KEYS as QUANTIZATION_KEYS
from compact.sources.quantization import refuse_packed
from compact.sources.stored_weights import EXPLICIT, StoredWeights, refuse_left_out
from compact.sources.tensor_names import Names, map_names, refuse_unmerged, refuse_wrapped, unused_names
from compact.vocabulary.tokenizer import copy_chat_templates

if TYPE_CHECKING:
    import torch

# Files besides config.json, weights, chat templates and licences that later stages read.
_COPIED = (*(name for name in SMALL_FILES if name != CONFIG), ADDED_TOKENS, "README.md", "plan.json")
# Raise this if the files of the usual form change.
_VERSION = 1
# No later stage and no format computes in float64.
_NARROWED = {"F64": "F32"}


@dataclass(frozen=True)
class StandardForm:
    """The usual form of an unusual checkpoint folder.

    Attributes:
        directory: the unusual folder.
        config: config.json of the usual form.
        tensors: name in the layout -> stored name.
        weights: the tensors of the folder.
        notes: what is unusual about the folder, each as one short statement.
        left_out: tokens for images and sound, which have no row in the embedding.
    """

    directory: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, str]
    weights: StoredWeights
    notes: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    def written(
        self, cache: Cache, progress: Progress = SILENT, check: Callable[[Mapping[str, str]], None] = lambda _: None
    ) -> Path:
        """Write the usual form into the cache, unless it is there. Return its folder.

        Args:
            cache: the cache.
            progress: receives the number of tensors written.
            check: receives the sha256 of every file that is used, before anything is written.
        """
        hashes = self._hashes()
        check(hashes)
        key = sha256_json({"version": _VERSION, "files": hashes})
        needed = sum(spec.n_bytes for spec in self._specs())
        return cache.get_or_make("standard-form", key, lambda out: self.write(out, progress), needed_bytes=needed)

    def _specs(self) -> Iterator[TensorSpec]:
        for own, name in sorted(self.tensors.items()):
            ref = self.weights.tensors[name]
            yield TensorSpec(own, _NARROWED.get(ref.dtype, ref.dtype), ref.shape)

    def write(self, out: Path, progress: Progress = SILENT) -> None:
        """Write the usual form into `out`, an empty directory, tensor by tensor."""
        specs = list(self._specs())
        plain = {name: self.weights.tensors[name] for name in self.tensors.values()}
        with open_tensors(plain) as read, progress.task("rewriting the checkpoint", len(specs), "tensors") as task:

            def produce(spec: TensorSpec) -> torch.Tensor:
                task.advance()
                tensor = read(self.tensors[spec.name])
                return tensor.float() if spec.dtype != plain[self.tensors[spec.name]].dtype else tensor

            write_checkpoint(out, specs, produce)
        for path in _small_files(self.directory):
            shutil.copyfile(path, out / path.name)
        copy_chat_templates(self.directory, out)
        write_json(out / CONFIG, self.config)
        if self.left_out:
            leave_out(out, self.left_out)

    def _hashes(self) -> dict[str, str]:
        """Return file name -> sha256 of every file that the usual form depends on."""
        index = self.directory.glob("*.safetensors.index*.json")
        templates = (self.directory / NAMED_TEMPLATES).glob("*.jinja")
        files = {self.directory / CONFIG, *_small_files(self.directory), *self.weights.files, *index, *templates}
        return {path.relative_to(self.directory).as_posix(): sha256_file(path) for path in sorted(files)}


def _small_files(directory: Path) -> list[Path]:
    """Return the files of a checkpoint folder, besides config.json, weights and chat templates, that are used."""
    return [path for path in (*(directory / name for name in _COPIED), *legal_files(directory)) if path.is_file()]


def standard_form(
    directory: Path, config: Mapping[str, Any], family: Family, weights: StoredWeights
) -> StandardForm | None:
    """Return the usual form of a checkpoint folder, or None if the folder has it already.

    Args:
        directory: the folder.
        config: its config.json with sizes checked, and with the architecture that Transformers chooses (`with_class`).
        family: the row of the family table.
        weights: its tensors.

    Raises:
        QuantizedCheckpointError: the weights are quantized, or config.json says so.
        DamagedFileError, UnsupportedArchitectureError: the tensors are not those of the layout.
    """
    refuse_packed(weights.tensors, config, directory / CONFIG)
    names, tensors = checked_tensors(directory, config, family, weights)
    settings = tuple(
        f"{key} of {CONFIG} is ignored, because the weights are not quantized"
        for key in QUANTIZATION_KEYS
        if config.get(key) is not None
    )
    if config != read_json_object(directory / CONFIG):
        settings = (*settings, f"{CONFIG} is read as {family.architecture}, because of its {MODEL_TYPE}")
    media = media_tokens(directory, config["vocab_size"])
    if media:
        settings = (*settings, f"the tokenizer has {', '.join(media)} without a row in the embedding: left out")
    other_types = any(ref.dtype not in DTYPE_BYTES or ref.dtype in _NARROWED for ref in weights.tensors.values())
    if weights.usual and names.usual and not settings and not other_types and config.get(EXPLICIT) in (None, SINGLE):
        return None
    kept = {key: value for key, value in config.items() if key not in (*QUANTIZATION_KEYS, EXPLICIT)}
    return StandardForm(directory, kept, tensors, weights, (*weights.notes, *_notes(names, weights), *settings), media)


def checked_tensors(
    directory: Path, config: Mapping[str, Any], family: Family, weights: StoredWeights
) -> tuple[Names, dict[str, str]]:
    """Check the tensors of a folder against the layout.

    Args:
        directory, config, family, weights: as in `standard_form`.

    Returns:
        How the stored names map to the layout, and name in the layout -> stored name for every tensor of the model.

    Raises:
        QuantizedCheckpointError, DamagedFileError, UnsupportedArchitectureError: as in `standard_form`.
    """
    expected = expected_shapes(family, config, len(weights.tensors), str(directory))
    refuse_unmerged(weights.tensors)
    names = map_names(weights.tensors, expected, family, config, str(directory))
    if any(name not in names.stored for name in expected):
        refuse_wrapped(weights.tensors, expected, family, config, str(directory))
        refuse_left_out(directory, weights, expected.keys() - names.stored.keys())
    unused = unused_names(names, family, config)
    tensors = {own: name for own, name in names.stored.items() if own not in unused}
    shapes = {own: weights.tensors[name].shape for own, name in tensors.items()}
    files = {own: str(weights.tensors[name].file) for own, name in tensors.items()}
    check_shapes(family, config, shapes, str(directory), files=files)
    _refuse_types({own: weights.tensors[name] for own, name in tensors.items()})
    return names, tensors


def _refuse_types(tensors: Mapping[str, TensorRef]) -> None:
    """Raise QuantizedCheckpointError for a tensor that is not of a float type of at least 16 bits."""
    for own, ref in sorted(tensors.items()):
        if ref.dtype not in DTYPE_BYTES:
            raise QuantizedCheckpointError(
                f"{ref.file}: tensor {own!r} has type {ref.dtype}, not a float type of 16 bits or more",
                "use the original checkpoint, not a quantized one",
            )


def _notes(names: Names, weights: StoredWeights) -> Iterator[str]:
    renamed = [(own, name) for own, name in sorted(names.stored.items()) if own != name]
    if renamed:
        own, name = renamed[0]
        count = f" and {len(renamed) - 1} more" if len(renamed) > 1 else ""
        yield f"tensor {name} is read as {own}{count}"
    if any(weights.tensors[name].dtype in _NARROWED for name in names.stored.values()):
        yield "weights of type F64 are read as F32"
    if weights.repeated:
        yield "some tensors are stored twice with equal values"
    if names.ignored:
        count = f" and {len(names.ignored) - 1} more" if len(names.ignored) > 1 else ""
        yield f"tensor {names.ignored[0]}{count} is not part of the language model and is left out"
