"""The device and the number type that a computation runs with, and the memory that is free there."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from compact.base.errors import UsageError

if TYPE_CHECKING:
    import torch


def resolve_device(device: str) -> str:
    """`auto` -> cuda where there is one, else cpu. Raises UsageError for a device that is not there."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device, False):
        raise UsageError(f"--device {device}: not available here", "use --device cpu")
    return device


def resolve_dtype(dtype: str, device: str) -> torch.dtype:
    """`auto` -> float32 on the CPU (exact and fast there), bfloat16 on an accelerator."""
    import torch

    name = ("float32" if device == "cpu" else "bfloat16") if dtype == "auto" else dtype
    result: torch.dtype = getattr(torch, name)
    return result


def computed_on(device: str, dtype: str) -> dict[str, str]:
    """The device and type that options come to here: what a stage's key has of them.

    `auto` is float32 on one machine and bfloat16 on another, and both may share a cache.
    """
    place = resolve_device(device)
    return {"device": place, "dtype": str(resolve_dtype(dtype, place))}


def cpu_multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16 products; without, they are several times slower."""
    import torch

    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def free_memory(device: str) -> int:
    """Bytes that are free where a resolved device's tensors lie."""
    if device == "cuda":
        import torch

        # What earlier stages gave back torch keeps for what comes next; for the driver it is in use.
        kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return int(torch.cuda.mem_get_info()[0]) + kept
    import psutil

    return int(psutil.virtual_memory().available)


def default_threads() -> int:
    """Physical cores less one: llama.cpp's threads spin while they wait, and one core is for the rest."""
    import psutil

    return max(1, (psutil.cpu_count(logical=False) or os.cpu_count() or 2) - 1)
