"""Several processes on one job, as `torchrun` starts them: data parallel, every process over its share of the samples.

`joined` reads what torchrun set in the environment and connects the processes (torch.distributed: Gloo on the CPU, NCCL
between CUDA devices). Outside that block, and with one process, every function here does nothing and costs nothing.
All of them but `rank`, `world_size`, `local_world_size`, `is_main` and `share` must be called by every process, in the
same order.

Sums are exact to the type that they are given in (float64 for statistics), and the same bits on every process.
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

from compact.errors import EXIT_UNAVAILABLE, CompactEdgeError, ToolUnavailableError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import torch

    Summed = TypeVar("Summed", np.ndarray[Any, Any], torch.Tensor)
else:
    Summed = TypeVar("Summed")
Item = TypeVar("Item")

# One process may write hundreds of gigabytes while the others wait. The end of a process ends the wait at once.
_PATIENCE = timedelta(days=2)
# Elements that one reduction of gradients copies together: few calls, and little memory beside the gradients.
_BUCKET = 1 << 23
_POLL_SECONDS = 0.0005


class PeerFailedError(CompactEdgeError):
    """Another process of the job failed first, and has said why."""

    exit_code = EXIT_UNAVAILABLE


@dataclass(frozen=True)
class _World:
    rank: int
    size: int


# The job is one of the process, like the process group of torch that it stands for; only `joined` sets it.
_world = _World(0, 1)


def rank() -> int:
    """The number of this process; 0 where there is one."""
    return _world.rank


def world_size() -> int:
    """How many processes there are."""
    return _world.size


def is_main() -> bool:
    """Whether this process is the one that writes files and talks to the user."""
    return _world.rank == 0


def share(items: Sequence[Item]) -> list[Item]:
    """This process's part of what all hold: every n-th item. May be empty."""
    return list(items[_world.rank :: _world.size])


def local_world_size() -> int:
    """How many processes share this machine."""
    return _number("LOCAL_WORLD_SIZE", _world.size) if _world.size > 1 else 1


def launched() -> int:
    """How many processes the environment (torchrun) says there are; 1 without it."""
    return _number("WORLD_SIZE", 1)


def launched_rank() -> int:
    """The number of this process in the environment; 0 without it."""
    return _number("RANK", 0)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default


@contextmanager
def joined(device: str = "cpu") -> Iterator[None]:
    """Connect the processes that torchrun started, for the length of the block; nothing where there is one.

    Args:
        device: of the work, as `--device` names it; on CUDA every process of a machine takes a card of its own.

    Raises:
        UsageError: more processes on this machine than cards.
        PeerFailedError: the block failed because another process did, which was first to fail.
        ToolUnavailableError: the processes cannot reach each other.
    """
    global _world
    size = launched()
    if size == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    if not dist.is_available():
        raise ToolUnavailableError(f"{size} processes: this build of torch has no torch.distributed")
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    local = _number("LOCAL_RANK", 0)
    if cuda and local >= torch.cuda.device_count():
        raise UsageError(
            f"{_number('LOCAL_WORLD_SIZE', size)} processes and {torch.cuda.device_count()} CUDA devices here",
            "start one process a device: torchrun --nproc-per-node",
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
        raise ToolUnavailableError(f"{size} processes cannot be connected: {_line(error)}") from error
    _world = _World(number, size)
    try:
        yield
        barrier()
        dist.destroy_process_group()
    except BaseException as error:
        # The first to fail says why; what the others meet (a closed connection, torchrun's SIGTERM) follows from it.
        if not _first_to_fail(store):
            raise PeerFailedError("another process of the job failed") from error
        raise
    finally:
        _world = _World(0, 1)


def _first_to_fail(store: Any) -> bool:
    try:
        return bool(store.add("compact-edge/failed", 1) == 1)
    except RuntimeError:
        # The store has gone with what keeps it: torchrun, which says so itself, or the first process, which has failed.
        return _world.rank == 0


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _finish(work: Any) -> None:
    """Wait for a reduction, open to signals: a wait inside torch would not see the SIGTERM that ends a failed job."""
    try:
        while not work.is_completed():
            time.sleep(_POLL_SECONDS)
        work.wait()
    except RuntimeError as error:
        raise ToolUnavailableError(
            f"process {_world.rank} of {_world.size}: another one has ended ({_line(error)})",
            "its own message, or torchrun's, says why",
        ) from error


def _tensor_of(value: Any) -> Any:
    import numpy as np
    import torch

    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def all_reduce_sum(value: Summed) -> Summed:
    """Add up a contiguous array or tensor over all processes, in place; returns it."""
    if _world.size > 1:
        import torch.distributed as dist

        _finish(dist.all_reduce(_tensor_of(value), async_op=True))
    return value


def all_reduce_mean_(tensors: Sequence[torch.Tensor]) -> None:
    """Replace tensors (gradients) by their means over all processes. All processes give the same shapes and types."""
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
    """The first process's value (of JSON's types) on every process."""
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
    """Wait until every process is here."""
    if _world.size > 1:
        import torch

        all_reduce_sum(torch.zeros(1))
