"""Read and write safetensors checkpoints, with one tensor in memory at a time.

`safetensors.torch.save_file` needs all tensors of a shard in memory. The writer here writes the header first and then
one tensor after another. Pruning a 70B model therefore only needs memory for its largest tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from compact.base.errors import DamagedFileError, PickleRefusedError, UnsafePathError
from compact.base.files import read_json_object, safe_child, write_json
from compact.checkpoints.safetensors_header import header_json, read_header

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_SHARD_BYTES = 5_000_000_000
_BLOB = re.compile(r"[0-9a-f]{64}")

# safetensors dtype name -> bytes per element, for the floating-point types of language models.
DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class TensorRef:
    """Location of a tensor in a checkpoint.

    Attributes:
        file: the shard.
        dtype: safetensors dtype name.
        shape: row-major shape.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        return self.n_elements * DTYPE_BYTES[self.dtype]

    @property
    def n_elements(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count


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
    tensors: dict[str, TensorRef] = {}
    for file in files:
        for entry in sorted(read_header(file), key=lambda entry: entry.name):
            if entry.name in tensors:
                raise DamagedFileError(f"{file}: tensor {entry.name!r} is in two shards")
            if entry.dtype not in DTYPE_BYTES:
                raise DamagedFileError(
                    f"{file}: tensor {entry.name!r} has type {entry.dtype}, not a float type",
                    "use the original checkpoint, not a quantized one",
                )
            tensors[entry.name] = TensorRef(file, entry.dtype, entry.shape)
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


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that will be written: its name, safetensors dtype and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        return TensorRef(Path(), self.dtype, self.shape).n_bytes


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the little-endian bytes of a tensor. A contiguous tensor on the CPU is not copied."""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _shards(specs: Sequence[TensorSpec], max_bytes: int) -> list[list[TensorSpec]]:
    shards: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in specs:
        if shards[-1] and size + spec.n_bytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += spec.n_bytes
    return shards


def _write_header(file: IO[bytes], specs: Sequence[TensorSpec]) -> None:
    entries: dict[str, Any] = {}
    offset = 0
    for spec in specs:
        end = offset + spec.n_bytes
        entries[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [offset, end]}
        offset = end
    text = header_json(entries)
    text += b" " * (-len(text) % 8)  # the data must start at a multiple of 8
    file.write(len(text).to_bytes(8, "little") + text)


def write_checkpoint(
    directory: Path,
    specs: Iterable[TensorSpec],
    produce: Callable[[TensorSpec], torch.Tensor],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> int:
    """Write `model.safetensors`, or shards and their index, with one tensor in memory at a time.

    Args:
        directory: an empty directory, for example from `compact.base.files.publish`.
        specs: all tensors, in the order to write them.
        produce: returns the tensor of a spec. It is called once per spec, in order.
        max_shard_bytes: largest size of a shard. A tensor that is larger gets a separate shard.

    Returns:
        The total number of bytes of all tensors.

    Raises:
        DamagedFileError: a tensor has another number of bytes than its spec.
    """
    shards = _shards(list(specs), max_shard_bytes)
    weight_map: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(shards, 1):
        name = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with (directory / name).open("wb") as file:
            _write_header(file, shard)
            for spec in shard:
                data = tensor_bytes(produce(spec))
                if data.nbytes != spec.n_bytes:
                    raise DamagedFileError(f"{spec.name}: has {data.nbytes} bytes, expected {spec.n_bytes}")
                file.write(data)
                total += data.nbytes
                weight_map[spec.name] = name
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(directory / INDEX, index)
    return total
