"""Run one job in several processes that `torchrun` started. Every process handles its share of the samples.

`joined` reads the environment variables of torchrun and connects the processes (torch.distributed, with Gloo on the CPU
and NCCL between CUDA devices). Outside that block, or with one process, the functions here do nothing.

Every process must call the collective functions in the same order. These are `joined`, `all_reduce_sum`,
`all_reduce_mean_`, `broadcast_json` and `barrier`.

Sums have the type of their inputs (float64 for statistics) and are bit-identical on all processes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from compact.base.errors import EXIT_UNAVAILABLE, CompactEdgeError, ToolUnavailableError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import torch

    Summed = TypeVar("Summed", np.ndarray[Any, Any], torch.Tensor)
else:
    Summed = TypeVar("Summed")
Item = TypeVar("Item")

# Timeout of waits. One process may write hundreds of gigabytes while the others wait. If a process ends, the wait ends
# at once.
_PATIENCE = timedelta(days=2)
# Maximum number of gradient elements per reduction. It bounds the extra memory and still needs few calls.
_BUCKET = 1 << 23
_POLL_SECONDS = 0.0005


class PeerFailedError(CompactEdgeError):
    """Raised when another process of the job failed first. That process reports the reason."""

    exit_code = EXIT_UNAVAILABLE


@dataclass(frozen=True)
class _World:
    rank: int
    size: int


# Process-wide, like torch's process group. Only `joined` sets it.
_world = _World(0, 1)


def rank() -> int:
    """Return the number of this process, from 0."""
    return _world.rank


def world_size() -> int:
    """Return the number of processes."""
    return _world.size


def is_main() -> bool:
    """Return whether this is the process that writes files and reports to the user."""
    return _world.rank == 0


def share(items: Sequence[Item]) -> list[Item]:
    """Return this process's share of the items: every n-th one for n processes. May be empty."""
    return list(items[_world.rank :: _world.size])


def local_world_size() -> int:
    """Return the number of processes on this machine."""
    return _number("LOCAL_WORLD_SIZE", _world.size) if _world.size > 1 else 1


def launched() -> int:
    """Return the number of processes according to the environment (torchrun), or 1."""
    return _number("WORLD_SIZE", 1)


def launched_rank() -> int:
    """Return the number of this process according to the environment (torchrun), or 0."""
    return _number("RANK", 0)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default


@contextmanager
def joined(device: str = "cpu") -> Iterator[None]:
    """Connect the processes that torchrun started while the block runs. Does nothing if there is only one process.

    Args:
        device: the device to work on, as in `--device`. On CUDA, every process on a machine uses a different card.

    Raises:
        UsageError: there are more processes on this machine than CUDA devices.
        PeerFailedError: the block failed because another process had failed first.
        ToolUnavailableError: the processes cannot be connected.
    """
    global _world
    size = launched()
    if size == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    if not dist.is_available():
        raise ToolUnavailableError(
            f"{size} processes were started, but this build of torch has no torch.distributed",
            "install a build of torch with torch.distributed, or start a single process",
        )
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    local = _number("LOCAL_RANK", 0)
    if cuda and local >= torch.cuda.device_count():
        raise UsageError(
            f"{_number('LOCAL_WORLD_SIZE', size)} processes, but this machine has "
            f"{torch.cuda.device_count()} CUDA devices",
            "start one process per device: torchrun --nproc-per-node",
        )
    try:
        store, number, size = next(rendezvous("env://", timeout=_PATIENCE))
        if cuda:
            torch.cuda.set_device(local)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=PrefixStore("compact-edge", store),
            rank=number,
            world_size=size,
            timeout=_PATIENCE,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise ToolUnavailableError(
            f"{size} processes cannot be connected: {_line(error)}",
            "check MASTER_ADDR and MASTER_PORT, or start the job again with torchrun",
        ) from error
    _world = _World(number, size)
    try:
        yield
        barrier()
        dist.destroy_process_group()
    except BaseException as error:
        # Only the first process to fail reports its error. The others fail as a consequence (a closed connection, or
        # torchrun's SIGTERM).
        if not _first_to_fail(store):
            raise PeerFailedError("another process of the job failed") from error
        raise
    finally:
        _world = _World(0, 1)


def _first_to_fail(store: Any) -> bool:
    try:
        return bool(store.add("compact-edge/failed", 1) == 1)
    except RuntimeError:
        # The process that hosts the store has ended. That is torchrun, which reports it itself, or the first process,
        # which has then failed.
        return _world.rank == 0


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _finish(work: Any) -> None:
    """Wait for a collective operation by polling. A wait inside torch would block SIGTERM, which ends a failed job."""
    try:
        while not work.is_completed():
            time.sleep(_POLL_SECONDS)
        work.wait()
    except RuntimeError as error:
        raise ToolUnavailableError(
            f"process {_world.rank} of {_world.size}: another process has ended ({_line(error)})",
            "see the message of that process, or of torchrun",
        ) from error


def _tensor_of(value: Any) -> Any:
    import numpy as np
    import torch

    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def all_reduce_sum(value: Summed) -> Summed:
    """Sum a contiguous array or tensor over all processes, in place. Returns the same object."""
    if _world.size > 1:
        import torch.distributed as dist

        _finish(dist.all_reduce(_tensor_of(value), async_op=True))
    return value


def all_reduce_mean_(tensors: Sequence[torch.Tensor]) -> None:
    """Replace tensors (gradients) by their means over all processes. Shapes and types must be the same everywhere."""
    if _world.size == 1:
        return
    import torch

    kinds: dict[Any, list[torch.Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for same in kinds.values():
        bucket: list[torch.Tensor] = []
        for number, tensor in enumerate(same):
            bucket.append(tensor)
            if number == len(same) - 1 or sum(t.numel() for t in bucket) + same[number + 1].numel() > _BUCKET:
                flat = all_reduce_sum(torch.cat([t.detach().reshape(-1) for t in bucket])).div_(_world.size)
                at = 0
                for each in bucket:
                    each.detach().copy_(flat[at : at + each.numel()].view_as(each))
                    at += each.numel()
                bucket = []


def broadcast_json(value: Any) -> Any:
    """Return the first process's value on every process. The value must be JSON-serialisable."""
    if _world.size == 1:
        return value
    import torch
    import torch.distributed as dist

    text = json.dumps(value).encode()
    length = torch.tensor([len(text)])
    _finish(dist.broadcast(length, 0, async_op=True))
    data = torch.zeros(int(length), dtype=torch.uint8)
    if is_main():
        data.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
    _finish(dist.broadcast(data, 0, async_op=True))
    return json.loads(bytes(data.tolist()))


def barrier() -> None:
    """Wait until every process calls this."""
    if _world.size > 1:
        import torch

        all_reduce_sum(torch.zeros(1))
