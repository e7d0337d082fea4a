"""Write safetensors files in pieces, so that memory use does not grow with the model.

`safetensors.torch.save_file` needs all tensors of a file in memory. Two writers need less:

- `write_checkpoint` knows all names, dtypes and shapes. It writes the header first and then one tensor after another,
  in shards. Pruning a 70B model therefore only needs memory for its largest tensor.
- `SafetensorsWriter` reserves space for the header and fills it in at the end. A tensor is written in pieces, and its
  dtype can still change while it is being written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from compact.base.errors import DamagedFileError
from compact.base.files import write_json
from compact.checkpoints.safetensors_file import header_block, n_bytes
from compact.checkpoints.shards import INDEX, SINGLE

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

MAX_SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that will be written: its name, safetensors dtype and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        return n_bytes(self.dtype, self.shape)


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


def _header(specs: Sequence[TensorSpec]) -> bytes:
    entries: dict[str, Any] = {}
    offset = 0
    for spec in specs:
        end = offset + spec.n_bytes
        entries[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [offset, end]}
        offset = end
    return header_block(entries)


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
            file.write(_header(shard))
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


class SafetensorsWriter:
    """Writes one safetensors file, tensor by tensor and piece by piece. Use it as a context manager.

    For each tensor, call `begin`, then `write` once per piece, then `end`. `restart` discards the current tensor and
    starts it again with another dtype. The header is written when the block ends without an exception.

    Args:
        path: the file to write. It must not exist yet.
        names: name and shape of every tensor that will be written, in this order.
    """

    def __init__(self, path: Path, names: Sequence[tuple[str, tuple[int, ...]]]) -> None:
        # Reserve space for the longest possible header. A dtype has at most 4 letters, and an offset at most 20 digits.
        worst = {name: {"dtype": "BF16", "shape": shape, "data_offsets": [10**19, 10**19]} for name, shape in names}
        self._data_at = len(header_block(worst))
        self._expected = dict(names)
        self._entries: dict[str, dict[str, Any]] = {}
        self._start = 0
        self._end = 0
        self._path = path
        self._open: tuple[str, str] | None = None
        self._file: BinaryIO | None = None

    def __enter__(self) -> SafetensorsWriter:
        self._file = self._path.open("xb")
        self._file.write(b" " * self._data_at)
        return self

    def begin(self, name: str, dtype: str) -> None:
        """Start a tensor with a dtype (`F32`, `F16` or `BF16`)."""
        assert self._open is None
        self._open = (name, dtype)
        self._start = self._end

    def restart(self, dtype: str) -> None:
        """Discard the written part of the current tensor, and start it again with another dtype."""
        assert self._open is not None and self._file is not None
        self._open = (self._open[0], dtype)
        self._end = self._start
        self._file.seek(self._data_at + self._start)
        self._file.truncate()

    def write(self, piece: npt.NDArray[Any]) -> None:
        """Append the bytes of a piece of the current tensor, in row-major order and little-endian."""
        import numpy as np

        assert self._file is not None
        data = np.ascontiguousarray(piece)
        self._file.write(data.reshape(-1).view(np.uint8).data)
        self._end += data.nbytes

    def end(self) -> None:
        """Finish the current tensor. The number of bytes written must match its shape."""
        assert self._open is not None
        name, dtype = self._open
        shape = self._expected[name]
        assert self._end - self._start == n_bytes(dtype, shape), name
        self._entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [self._start, self._end]}
        self._open = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        with self._file:
            if kind is None:
                assert set(self._entries) == set(self._expected)
                self._file.seek(0)
                self._file.write(header_block(self._entries, self._data_at))
