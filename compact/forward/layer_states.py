"""Hidden states between the layers of `compact.forward.layerwise`: on the device, in memory or in a mapped file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from compact.base.files import as_storage_error, check_free_space

if TYPE_CHECKING:
    import torch

# States stay on a CUDA device if they need at most this fraction (1 / _DEVICE_SHARE) of its free memory.
_DEVICE_SHARE = 4


class States:
    """One tensor per batch, stored in one block."""

    def __init__(self, flat: torch.Tensor, shapes: Sequence[tuple[int, ...]], device: str) -> None:
        self._device = device
        self._parts = []
        at = 0
        for shape in shapes:
            self._parts.append(flat[at : at + prod(shape)].view(shape))
            at += prod(shape)

    def get(self, index: int, part: int | None = None) -> torch.Tensor:
        """Return the tensor of a batch, on the device. With `part`, return one entry of its first dimension."""
        whole = self._parts[index]
        return (whole if part is None else whole[part]).to(self._device)

    def put(self, index: int, states: torch.Tensor, part: int | None = None) -> None:
        """Store the tensor of a batch. With `part`, store one entry of its first dimension."""
        (self._parts[index] if part is None else self._parts[index][part]).copy_(states)


class StateRoom:
    """Allocates storage for states.

    Args:
        device: the device of the states.
        dtype: the type of the states.
        state_bytes: states that need more bytes are stored in a memory-mapped file instead of in memory.
        scratch: directory for that file. None uses the system's temporary directory.
    """

    def __init__(self, device: str, dtype: torch.dtype, state_bytes: int, scratch: Path | None) -> None:
        self._device, self._dtype = device, dtype
        self._state_bytes, self._scratch = state_bytes, scratch

    @contextmanager
    def states(self, shapes: Sequence[tuple[int, ...]]) -> Iterator[States]:
        """Allocate storage for one tensor per shape. It is freed when the block ends.

        Raises:
            DiskFullError: the memory-mapped file does not fit on the disk.
            StorageError: the file cannot be created.
        """
        import torch

        count = sum(prod(shape) for shape in shapes)
        n_bytes = count * self._dtype.itemsize
        if self._device.startswith("cuda") and n_bytes <= torch.cuda.mem_get_info()[0] // _DEVICE_SHARE:
            yield States(torch.empty(count, dtype=self._dtype, device=self._device), shapes, self._device)
        elif n_bytes <= self._state_bytes:
            yield States(torch.empty(count, dtype=self._dtype), shapes, self._device)
        else:
            with tempfile.TemporaryDirectory(prefix="compact-edge-", dir=self._scratch) as directory:
                path = Path(directory) / "states"
                _allocate(path, n_bytes)
                flat = torch.from_file(str(path), shared=True, size=count, dtype=self._dtype)
                yield States(flat, shapes, self._device)


class SharedKeysValues:
    """Keys and values that later layers reuse, for every batch and kind of attention.

    Args:
        room: allocates the storage.
        stack: frees the storage when it closes.
        batches: shape [sequences, positions] of every batch.
    """

    def __init__(self, room: StateRoom, stack: ExitStack, batches: Sequence[tuple[int, ...]]) -> None:
        self._room, self._stack, self._batches = room, stack, batches
        self._kinds: dict[str, States] = {}

    def get(self, index: int, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the keys and values of a batch, each [sequences, heads, positions, head_dim]."""
        return self._kinds[kind].get(index, 0), self._kinds[kind].get(index, 1)

    def put(self, index: int, kind: str, pair: tuple[torch.Tensor, ...]) -> None:
        """Store the keys and values of a batch."""
        if kind not in self._kinds:
            heads, width = pair[0].shape[1], pair[0].shape[3]
            shapes = [(2, sequences, heads, positions, width) for sequences, positions in self._batches]
            self._kinds[kind] = self._stack.enter_context(self._room.states(shapes))
        for part, tensor in enumerate(pair):
            self._kinds[kind].put(index, tensor, part)


def _allocate(path: Path, n_bytes: int) -> None:
    """Create a file with all blocks allocated. A full disk then raises an error here instead of a crash on a write."""
    check_free_space(path.parent, n_bytes)
    try:
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, n_bytes)
            else:
                file.truncate(n_bytes)
    except OSError as error:
        raise as_storage_error(error, path) from error
