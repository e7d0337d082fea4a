"""What the scripts of this folder measure with: time, memory, and the token ids that all passes read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Buckets of tokens in the act2 sums of a calibration pass, less one.
EDGES = 64


def sequences_of(tokens: int, length: int, vocab_size: int) -> list[list[int]]:
    """Random token ids, the same in every process, in sequences of `length`."""
    import numpy as np

    ids: list[int] = np.random.default_rng(0).integers(0, vocab_size, tokens).tolist()
    return [ids[at : at + length] for at in range(0, tokens, length)]


def timed(run: Callable[[], Any], device: str) -> float:
    """Seconds of `run`, including the work that it leaves to the device."""
    import torch

    def wait() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    wait()
    started = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - started


def add_squares(sums: torch.Tensor, activations: torch.Tensor, buckets: torch.Tensor) -> None:
    """Add the squares of activations [positions, channels] to sums [EDGES + 1, channels], as the product does."""
    from compact.pruning.importance import _add_squares

    _add_squares(sums, activations, buckets)


def rss_anon(pid: int) -> int:
    """Bytes of a process's RssAnon (Linux); 0 if the process has ended."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def read_once(files: Iterable[Path]) -> None:
    """Read files, so that the first program that is timed finds them in the file cache, as the others do."""
    for file in set(files):
        with file.open("rb") as stream:
            while stream.read(1 << 24):
                pass
