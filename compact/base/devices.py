"""Choose the device and the number type of a computation, and get the free memory of a device."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from compact.base.errors import UsageError

if TYPE_CHECKING:
    import torch


def resolve_device(device: str) -> str:
    """Return the device for a `--device`. `auto` means cuda if it is available, otherwise cpu.

    Raises:
        UsageError: the device is not available.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device, False):
        raise UsageError(f"--device {device}: not available on this machine", "use --device cpu")
    return device


def resolve_dtype(dtype: str, device: str) -> torch.dtype:
    """Return the torch type for a `--dtype`.

    `auto` means float32 on a CPU, where it is exact and fast, and bfloat16 on an accelerator.
    """
    import torch

    name = ("float32" if device == "cpu" else "bfloat16") if dtype == "auto" else dtype
    result: torch.dtype = getattr(torch, name)
    return result


def computed_on(device: str, dtype: str) -> dict[str, str]:
    """Return the resolved device and type for the cache key of a stage.

    The key needs resolved values, because machines that resolve `auto` differently may share a cache.
    """
    resolved = resolve_device(device)
    return {"device": resolved, "dtype": str(resolve_dtype(dtype, resolved))}


def cpu_multiplies_bfloat16() -> bool:
    """Return whether this CPU has instructions for bfloat16 products. Without them, these are several times slower."""
    import torch

    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def free_memory(device: str) -> int:
    """Return the free memory of a resolved device, in bytes."""
    if device == "cuda":
        import torch

        # Torch caches memory that earlier stages freed. It can be used again, but the driver does not count it as free.
        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return int(torch.cuda.mem_get_info()[0]) + cached
    import psutil

    return int(psutil.virtual_memory().available)


def default_threads() -> int:
    """Return the number of physical cores minus one, but at least 1.

    Waiting threads of llama.cpp keep their cores busy, so one core is left for everything else.
    """
    import psutil

    return max(1, (psutil.cpu_count(logical=False) or os.cpu_count() or 2) - 1)
