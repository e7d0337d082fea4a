"""Finds the weight files of a checkpoint folder, and the tensors in them.

The usual layouts are those that Transformers reads (`_get_resolved_checkpoint_files` of its `modeling_utils`). It takes
the first of these that exists: the file that `transformers_weights` of config.json names, `model.safetensors`, and the
shards of `model.safetensors.index.json`. Other layouts are accepted if only one reading is possible: shards without an
index, and files with other names. Like Transformers, this reads all tensors of a shard, whatever the index says about
them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compact.base.errors import CompactEdgeError, DamagedFileError, DataError, PickleRefusedError
from compact.base.files import read_json_object, safe_child
from compact.checkpoints.names import CONFIG
from compact.checkpoints.safetensors_file import TensorRef, read_header
from compact.checkpoints.shards import INDEX, SINGLE, refuse_outside_link
from compact.sources.adapters import ADAPTER_WEIGHTS
from compact.sources.folder_kinds import no_weights
from compact.sources.stand_ins import refuse_stand_in

EXPLICIT = "transformers_weights"
# Bytes per element of the types whose values can be compared.
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I8": 1, "U8": 1}
_NUMBERED = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\..+)?\.safetensors")
# Transformers reads these before any other file (`is_sharded_checkpoint` of its `distributed.checkpoint`).
_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
# Safetensors files that are not weights of the model. `updates` is a file of our plans.
_NOT_WEIGHTS = re.compile(r"(?:optimizer|scheduler|random_states|training_args|updates)\b.*")
_PIECE = 1 << 20


@dataclass(frozen=True)
class StoredWeights:
    """The tensors of a checkpoint folder, as its files name them.

    Attributes:
        files: the safetensors files, sorted by name.
        tensors: stored name -> location. The dtype may be any of safetensors, not only a float type.
        notes: what is unusual, each as one short statement. With notes, Transformers cannot read the folder, or it
            reads a file other than `model.safetensors`.
        repeated: some tensors are in two files, with equal values.
    """

    files: tuple[Path, ...]
    tensors: Mapping[str, TensorRef]
    notes: tuple[str, ...] = ()
    repeated: bool = False

    @property
    def usual(self) -> bool:
        return not self.notes and not self.repeated


def find_weights(directory: Path, config: Mapping[str, Any]) -> StoredWeights:
    """Find the weights of a checkpoint folder.

    Args:
        directory: the folder.
        config: its config.json.

    Raises:
        DamagedFileError: a file is missing, damaged, or a pointer to the real one; a tensor is in two files with
            different values; or several readings are possible.
        PickleRefusedError: there are only pickled weights, or the index names a file that is not safetensors.
        UnsafePathError: a file is outside the folder.
        DataError: the folder has no weights (`compact.sources.folder_kinds.no_weights`).
    """
    files, notes = _files(directory, config)
    for file in files:
        refuse_stand_in(file)
        refuse_outside_link(directory, file)
    tensors: dict[str, TensorRef] = {}
    repeated = False
    for file in files:
        for entry in sorted(_header(file, directory), key=lambda entry: entry.name):
            if entry.name in tensors:
                _refuse_difference(tensors[entry.name], entry)
                repeated = True
                continue
            tensors[entry.name] = entry
    return StoredWeights(tuple(files), tensors, notes, repeated)


def _header(file: Path, directory: Path) -> list[TensorRef]:
    try:
        return read_header(file)
    except DamagedFileError as error:
        has_shards = (directory / INDEX).is_file() and file.name == SINGLE
        hint = (
            f"download it again, or remove it to use the shards of {INDEX}"
            if has_shards
            else "the file may be incomplete: download it again"
        )
        raise DamagedFileError(error.message, error.hint or hint) from error


def _files(directory: Path, config: Mapping[str, Any]) -> tuple[list[Path], tuple[str, ...]]:
    """Return the files to read, and what is unusual about them."""
    distributed = next((path.name for path in sorted(directory.iterdir()) if _DISTRIBUTED.fullmatch(path.name)), None)
    if distributed is not None:
        raise DamagedFileError(
            f"{directory / distributed}: a shard of a distributed checkpoint, which Transformers prefers to {SINGLE}",
            "load the folder with Transformers and save it to a new one with save_pretrained; or remove the files "
            f"shard-*-model-* to use {SINGLE}",
        )
    explicit = config.get(EXPLICIT)
    if explicit is not None:
        return _explicit(directory, explicit)
    single, index = directory / SINGLE, directory / INDEX
    refuse_stand_in(single)
    if single.is_file():
        return [single], ()
    refuse_stand_in(index)
    if index.is_file():
        return _indexed(directory, index)
    return _unindexed(directory)


def _explicit(directory: Path, name: object) -> tuple[list[Path], tuple[str, ...]]:
    where = directory / CONFIG
    if not isinstance(name, str) or not name.endswith((".safetensors", ".safetensors.index.json")):
        raise DamagedFileError(
            f"{where}: {EXPLICIT} = {str(name)[:80]!r} is not a safetensors file",
            f"remove {EXPLICIT} from {CONFIG}, or set it to the name of a safetensors file",
        )
    path = safe_child(directory, name, str(where))
    refuse_stand_in(path)
    if not path.is_file():
        raise DamagedFileError(
            f"{path}: named by {EXPLICIT} of {CONFIG}, but missing",
            f"put the file there, or remove {EXPLICIT} from {CONFIG} to use {SINGLE}",
        )
    note = f"{CONFIG} chooses {name} ({EXPLICIT})"
    if name.endswith(".json"):
        files, notes = _indexed(directory, path)
        return files, (note, *notes)
    return [path], () if name == SINGLE else (note,)


def refuse_explicit(config: Mapping[str, Any], where: Path, repo: str) -> None:
    """Raise DataError if config.json of a model on the Hub names a file other than `model.safetensors`.

    Only files with the usual names are downloaded.

    Args:
        config: config.json.
        where: its path.
        repo: name of the repository.
    """
    if config.get(EXPLICIT) not in (None, SINGLE):
        raise DataError(
            f"{where}: {EXPLICIT} names a file other than {SINGLE}, which is not downloaded",
            f"run `hf download {repo} --local-dir FOLDER`, then name FOLDER",
        )


def _indexed(directory: Path, index: Path) -> tuple[list[Path], tuple[str, ...]]:
    try:
        content = read_json_object(index)
    except DamagedFileError as error:
        raise DamagedFileError(error.message, "download the index again, or remove it") from error
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise DamagedFileError(f"{index}: weight_map is missing", "download the index again, or remove it")
    if not all(isinstance(name, str) for name in weight_map.values()):
        raise DamagedFileError(f"{index}: weight_map has values that are not file names", "download the index again")
    files = [safe_child(directory, name, str(index)) for name in sorted(set(weight_map.values()))]
    for file in files:
        refuse_stand_in(file)
        if not file.name.endswith(".safetensors"):
            raise PickleRefusedError(
                f"{index}: names {file.name!r}, which is not a safetensors file",
                "use the index that belongs to the safetensors files, or remove it",
            )
        if not file.is_file():
            raise DamagedFileError(f"{file}: named by {index.name}, but missing", "download the checkpoint again")
    notes = [] if index.name == INDEX else [f"{index.name} is the only index"]
    if not isinstance(content.get("metadata"), dict):
        notes.append(f"{index.name} has no metadata")
    return files, tuple(notes)


def _unindexed(directory: Path) -> tuple[list[Path], tuple[str, ...]]:
    """Choose the files of a folder without `model.safetensors` and its index."""
    indexes = sorted(path for path in directory.glob("*.safetensors.index*.json") if path.is_file())
    if len(indexes) == 1:
        return _indexed(directory, indexes[0])
    found = sorted(
        path
        for path in directory.glob("*.safetensors")
        if (path.is_file() or path.is_symlink())
        and path.name not in ADAPTER_WEIGHTS
        and not _NOT_WEIGHTS.fullmatch(path.stem)
    )
    for path in found:
        refuse_stand_in(path)
    # `consolidated*` is Mistral's own format. It repeats the weights of the other files under other names.
    files = [path for path in found if not path.name.startswith("consolidated")] or found
    if not files:
        raise no_weights(directory)
    names = ", ".join(path.name for path in files[:3]) + (", ..." if len(files) > 3 else "")
    if len(indexes) > 1:
        listed = ", ".join(path.name for path in indexes[:3])
        raise DamagedFileError(
            f"{directory}: no {SINGLE} and no {INDEX}, but {len(indexes)} other indexes ({listed})",
            f"rename the index to use to {INDEX}, or remove the others",
        )
    _refuse_gap(files)
    if len(files) > 1 and _overlap(files):
        raise DamagedFileError(
            f"{directory}: no {SINGLE} and no {INDEX}, and several files have the same tensors ({names})",
            f"rename the file to use to {SINGLE}, or remove the others",
        )
    note = f"the weights are {names}" if len(files) == 1 else f"{len(files)} shards without an index ({names})"
    return files, (note,)


def _refuse_gap(files: Iterable[Path]) -> None:
    """Raise DamagedFileError if one of the numbered shards is missing."""
    for file in files:
        if (match := _NUMBERED.fullmatch(file.name)) is None:
            continue
        start, _, total, rest = match.groups()
        for number in range(1, min(int(total), 10_000) + 1):
            other = file.with_name(f"{start}-{number:05d}-of-{total}{rest or ''}.safetensors")
            if not other.is_file():
                raise DamagedFileError(
                    f"{other}: missing, although {file.name} exists", "download the checkpoint again"
                )


def _overlap(files: Iterable[Path]) -> bool:
    seen: set[str] = set()
    for file in files:
        names = {entry.name for entry in read_header(file)}
        if names & seen:
            return True
        seen |= names
    return False


def refuse_left_out(directory: Path, weights: StoredWeights, missing: Set[str]) -> None:
    """Raise DamagedFileError if a missing tensor is in a safetensors file that is not read.

    Args:
        directory: the folder.
        weights: the tensors that are read.
        missing: names in the layout of the tensors that were not found.
    """
    for file in sorted(set(directory.glob("*.safetensors")) - set(weights.files)):
        try:
            found = missing & {entry.name for entry in read_header(file)}
        except CompactEdgeError:
            continue
        if not found:
            continue
        name = min(found)
        if weights.files[0].name == SINGLE:
            raise DamagedFileError(
                f"{weights.files[0]}: tensor {name!r} is missing; it is in {file.name}, but Transformers reads only "
                f"{SINGLE} if that exists",
                f"remove {SINGLE} if the other files are the whole model",
            )
        raise DamagedFileError(
            f"{directory}: tensor {name!r} is missing; it is in {file.name}, which {INDEX} does not name",
            f"get the index that belongs to these files, or remove {INDEX} to read all of them",
        )


def _refuse_difference(one: TensorRef, two: TensorRef) -> None:
    """Raise DamagedFileError if two tensors of the same name differ. Transformers would use the last one."""
    if (one.dtype, one.shape) == (two.dtype, two.shape) and one.dtype in _BYTES and _same_bytes(one, two):
        return
    raise DamagedFileError(
        f"{two.file}: tensor {two.name!r} is in two shards with different values (also in {one.file.name})",
        f"remove the file with the wrong copy; Transformers would use {two.file.name}",
    )


def _same_bytes(one: TensorRef, two: TensorRef) -> bool:
    size = one.n_elements * _BYTES[one.dtype]
    with one.file.open("rb") as first, two.file.open("rb") as second:
        first.seek(one.offset)
        second.seek(two.offset)
        while size > 0:
            wanted = min(size, _PIECE)
            if first.read(wanted) != second.read(wanted):
                return False
            size -= wanted
    return True
