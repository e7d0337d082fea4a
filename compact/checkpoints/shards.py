"""Read the tensors of a checkpoint directory: its safetensors shards and their index."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compact.base.errors import DamagedFileError, PickleRefusedError, UnsafePathError
from compact.base.files import read_json_object, safe_child
from compact.checkpoints.safetensors_file import DTYPE_BYTES, TensorRef, read_header

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_BLOB = re.compile(r"[0-9a-f]{64}")


def weight_files(directory: Path) -> list[Path]:
    """Return the safetensors shards of a checkpoint directory, sorted by name.

    If there is a `model.safetensors` and an index, `model.safetensors` is used, as in Transformers.

    Raises:
        PickleRefusedError: there are only pickled weights.
        UnsafePathError: the index names a shard outside the directory, or a shard is a link to such a file.
        DamagedFileError: there are no weights, or a shard that the index names is missing.
    """
    index_path = directory / INDEX
    if (directory / SINGLE).is_file():
        files = [directory / SINGLE]
    elif index_path.is_file():
        weight_map = read_json_object(index_path).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise DamagedFileError(f"{index_path}: weight_map is missing")
        if not all(isinstance(name, str) for name in weight_map.values()):
            raise DamagedFileError(f"{index_path}: weight_map must map names to file names")
        files = [safe_child(directory, name, str(index_path)) for name in sorted(set(weight_map.values()))]
    else:
        pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in directory.glob(pattern))
        if pickled:
            raise PickleRefusedError(
                f"{directory}: only pickled weights ({pickled[0]}), and loading a pickle can run code",
                "convert them to safetensors with a tool that you trust, then try again",
            )
        raise DamagedFileError(
            f"{directory}: no {SINGLE} and no {INDEX}", "the directory must contain safetensors weights"
        )
    for file in files:
        if not file.is_file():
            raise DamagedFileError(f"{file}: named by {INDEX}, but missing", "download the checkpoint again")
        refuse_outside_link(directory, file)
    return files


def refuse_outside_link(directory: Path, file: Path) -> None:
    """Raise UnsafePathError if a checkpoint file is a link to a file outside its directory.

    The layout of the Hub cache is allowed. There, `snapshots/REV/NAME` links to `../../blobs/HASH`. This file may also
    be a link, to `../../blobs/HH/HASH` in a store that all repositories of the cache share (huggingface_hub,
    `utils/_shared_blobs.py`).
    """
    home, real = directory.resolve(), file.resolve()
    if real.is_relative_to(home) or (home.parent.name == "snapshots" and _is_blob(home.parents[1], real)):
        return
    raise UnsafePathError(f"{file}: the link leaves its directory", "replace the link with the file")


def _is_blob(repository: Path, real: Path) -> bool:
    """Return whether a file is a blob of a repository in the Hub cache (`models--ORG--NAME`)."""
    if real.parent == repository / "blobs":
        return True
    shared = repository.parent / "blobs" / real.name[:2]
    return repository.name.startswith("models--") and real.parent == shared and bool(_BLOB.fullmatch(real.name))


def read_index(directory: Path) -> dict[str, TensorRef]:
    """Return the location of every tensor of a checkpoint, by name.

    Raises the errors of `weight_files` and `read_shards`.
    """
    return read_shards(weight_files(directory))


def read_shards(files: Iterable[Path]) -> dict[str, TensorRef]:
    """Return the location of every tensor in safetensors files, by name.

    Raises:
        DamagedFileError: a header is damaged, a tensor is not of a float type, or two shards contain the same tensor.
        StorageError: a file cannot be read.
    """
    tensors = _by_name(ref for file in files for ref in sorted(read_header(file), key=lambda ref: ref.name))
    for ref in tensors.values():
        if ref.dtype not in DTYPE_BYTES:
            raise DamagedFileError(
                f"{ref.file}: tensor {ref.name!r} has type {ref.dtype}, not a float type",
                "use the original checkpoint, not a quantized one",
            )
    return tensors


def stored_tensors(directory: Path) -> dict[str, TensorRef]:
    """Return every tensor of a checkpoint by name, of any type, in the order of the files. This reads no weights.

    Raises:
        DamagedFileError: a shard is damaged or missing, or two shards contain the same tensor.
        PickleRefusedError, UnsafePathError: an error of `weight_files`.
        StorageError: a shard cannot be read.
    """
    return _by_name(ref for file in weight_files(directory) for ref in read_header(file))


def _by_name(refs: Iterable[TensorRef]) -> dict[str, TensorRef]:
    tensors: dict[str, TensorRef] = {}
    for ref in refs:
        if ref.name in tensors:
            raise DamagedFileError(f"{ref.file}: tensor {ref.name!r} is in two shards")
        tensors[ref.name] = ref
    return tensors


@contextmanager
def open_tensors(tensors: Mapping[str, TensorRef]) -> Iterator[Callable[[str], torch.Tensor]]:
    """Yield a function that reads one tensor by name. Within the block, the shards stay open (mapped, not loaded)."""
    from contextlib import ExitStack

    from safetensors import safe_open

    with ExitStack() as stack:
        shards: dict[Path, Any] = {}

        def read(name: str) -> torch.Tensor:
            ref = tensors[name]
            if ref.file not in shards:
                shards[ref.file] = stack.enter_context(safe_open(str(ref.file), framework="pt"))
            tensor: torch.Tensor = shards[ref.file].get_tensor(name)
            return tensor

        yield read
