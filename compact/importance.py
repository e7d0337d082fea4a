"""Common act²: the importance of every FFN channel (COMPACT, arXiv 2509.06836).

`I_k = sum_i w_i * (act(x_i W_gate) * (x_i W_up))_k ^ 2`, with `w_i = 0` where the token at position i is in S (the
dropped tokens) and 1 elsewhere, from the *original* model and tokenizer. `w` depends on the vocabulary size V', so the
squares are summed per bucket of token rank: prefix sums over the buckets give the exact scores of every V' whose edge
is there, from one pass.
"""

from __future__ import annotations

import zipfile
import zlib
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compact.distributed import all_reduce_sum, share, world_size
from compact.errors import DamagedFileError, EngineCrashedError, UsageError
from compact.progress import SILENT, Progress

if TYPE_CHECKING:
    import torch

    from compact.layerwise import LayerStream

MAX_EDGES = 64
DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda", "mps")
# Activations that are widened and squared at once on the CPU, and positions of a block on an accelerator.
_CACHED_ELEMENTS = 1 << 16
_BLOCK_ROWS = 512


@dataclass(frozen=True)
class Scores:
    """Sums of squares per bucket of token rank.

    Attributes:
        edges: ascending vocabulary sizes V'; bucket e holds the tokens that V' = edges[e] keeps and edges[e-1] drops,
            the last bucket the tokens that no edge keeps.
        sums: float64 [num_hidden_layers, len(edges) + 1, channels]: the channels of the widest layer, zero beyond
            those of a narrower one.
    """

    edges: tuple[int, ...]
    sums: np.ndarray[Any, np.dtype[np.float64]]

    def at(self, vocab_size: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Exact scores [num_hidden_layers, channels] for V' = `vocab_size`.

        Raises:
            UsageError: `vocab_size` is no edge, so its exact scores were not collected.
        """
        at = bisect_left(self.edges, vocab_size)
        if at == len(self.edges) or self.edges[at] != vocab_size:
            raise UsageError(f"no scores were collected for --vocab-size {vocab_size}")
        total: np.ndarray[Any, np.dtype[np.float64]] = self.sums[:, : at + 1].sum(axis=1)
        return total

    def save(self, path: Path) -> None:
        np.savez(path, edges=np.array(self.edges, dtype=np.int64), sums=self.sums)

    @staticmethod
    def load(path: Path) -> Scores:
        """Raises DamagedFileError."""
        try:
            with np.load(path, allow_pickle=False) as data:
                return Scores(tuple(int(e) for e in data["edges"]), data["sums"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise DamagedFileError(f"{path}: not a file of scores ({error})") from error


def vocabulary_grid(vocab_size: int, smallest: int, asked: int | None = None, multiple: int = 1) -> tuple[int, ...]:
    """Vocabulary sizes whose scores one pass collects: at most 64 evenly spaced ones above `smallest`, and `asked`.

    Each is the nearest multiple of `multiple` below its even place.
    """
    step = max(1, -(-vocab_size // MAX_EDGES))
    edges = {size // multiple * multiple for size in range(vocab_size, smallest - 1, -step)}
    return tuple(sorted({edge for edge in edges if edge >= smallest} | ({asked} if asked is not None else set())))


def bucket_of_ids(n_rows: int, always: frozenset[int], ranking: Sequence[int], edges: Sequence[int]) -> list[int]:
    """For every source id, the bucket of its rank: the first edge V' that keeps it (`len(edges)` where none does).

    V' = v keeps the always-kept ids and the first `v - len(always)` of the ranking.
    """
    buckets = [len(edges)] * n_rows
    for token_id in always:
        buckets[token_id] = 0
    for position, token_id in enumerate(ranking):
        buckets[token_id] = bisect_left(edges, len(always) + position + 1)
    return buckets


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


def load_model(model_dir: Path, *, device: str = "cpu", dtype: torch.dtype | None = None) -> Any:
    """The checkpoint through Transformers, in evaluation mode, with no code of its own and without the network.

    Raises:
        DamagedFileError: Transformers does not accept the configuration or the weights.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(model_dir),
            dtype=dtype or torch.float32,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=True,
        )
    except (AttributeError, KeyError, TypeError, ValueError, StrictDataclassError) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DamagedFileError(f"{model_dir}: Transformers cannot load the checkpoint ({why})") from error
    return model.to(device).eval()


def collect_scores(
    model_dir: Path,
    sequences: Sequence[Sequence[int]],
    buckets: Sequence[int],
    edges: Sequence[int],
    *,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int = 1,
    scratch: Path | None = None,
    progress: Progress = SILENT,
) -> Scores:
    """Run the original model once over the calibration set and sum act² per layer, bucket and channel.

    Args:
        model_dir: the original checkpoint.
        sequences: ids; those of equal length are batched.
        buckets: bucket of every id (`bucket_of_ids`).
        edges: the vocabulary sizes.
        device, dtype: where and how the forward pass runs; sums are float64, of blocks in float32 on an accelerator.
        batch_size: sequences a forward pass; does not change the result beyond 1e-6 of a layer's largest score.
        scratch: where hidden states that do not fit in memory go; None takes the system's temporary directory.
        progress: told the tokens done.

    The layers run one after another (`compact.layerwise`), so the model never lies in memory whole. Where several
    processes are joined (`compact.distributed`), each takes its share of the sequences, and all return the same sums.

    Raises:
        EngineCrashedError: activations overflow in `dtype`.
        UsageError, DataError, StorageError: as `compact.layerwise.LayerStream`.
    """
    from compact.layerwise import LayerStream

    own = share(sequences)
    stream = LayerStream(model_dir, own, device=device, dtype=dtype, batch_size=batch_size, scratch=scratch)
    sums = np.zeros((stream.n_layers, len(edges) + 1, max(stream.channels)), dtype=np.float64)
    description = "calibrating" if world_size() == 1 else f"calibrating (1 of {world_size()} processes)"
    stream.run(_Act2(stream, buckets, sums), progress=progress, description=description)
    if not np.isfinite(sums).all():
        raise EngineCrashedError(
            f"{model_dir}: activations overflow in {dtype}", "calibrate with --dtype float32, or bfloat16"
        )
    return Scores(tuple(edges), sums)


class _Act2:
    """Sums squares by layer and bucket (a `compact.layerwise.Visitor`)."""

    def __init__(
        self, stream: LayerStream, buckets: Sequence[int], sums: np.ndarray[Any, np.dtype[np.float64]]
    ) -> None:
        import torch

        table = torch.tensor(buckets, dtype=torch.int64)
        self._index = [table[ids.reshape(-1)].to(stream.device) for ids in stream.batches]
        self._sums = sums
        self._channels = stream.channels
        # MPS has no float64.
        self._home = "cpu" if stream.device == "mps" else stream.device

    def begin(self, layer: int) -> None:
        import torch

        shape = (self._sums.shape[1], self._channels[layer])
        self._total = torch.zeros(shape, dtype=torch.float64, device=self._home)

    def inputs(self, layer: int, batch: int, activations: torch.Tensor) -> None:
        del layer
        _add_squares(self._total, activations, self._index[batch])

    def end(self, layer: int) -> None:
        self._sums[layer, :, : self._channels[layer]] = all_reduce_sum(self._total).cpu().numpy()


def _add_squares(total: torch.Tensor, activations: torch.Tensor, buckets: torch.Tensor) -> None:
    """Add the squares of `activations` [positions, I] to `total` float64 [buckets, I], by each position's bucket."""
    import torch

    if activations.device.type != "cpu":
        _add_by_products(total, activations, buckets)
        return
    # Blocks that stay in the processor's cache: larger ones take many times as long.
    rows = max(1, _CACHED_ELEMENTS // activations.shape[1])
    for start in range(0, activations.shape[0], rows):
        # Not squared in place: where the type is wide already, this is the model's own memory.
        squares = activations[start : start + rows].to(torch.float64).square()
        total.index_add_(0, buckets[start : start + rows], squares)


def _add_by_products(total: torch.Tensor, activations: torch.Tensor, buckets: torch.Tensor) -> None:
    """The same for an accelerator, in float32 within a block of positions: a product with the positions' buckets.

    Row by row, thousands of threads would wait for the same few sums.
    """
    import torch

    for start in range(0, activations.shape[0], _BLOCK_ROWS):
        squares = activations[start : start + _BLOCK_ROWS].to(torch.float32).square()
        chosen = torch.nn.functional.one_hot(buckets[start : start + _BLOCK_ROWS], total.shape[0])
        total += torch.mm(chosen.T.to(torch.float32), squares).to(total.device)


def top_channels(
    scores: np.ndarray[Any, np.dtype[np.float64]], count: int, widths: Sequence[int] | None = None
) -> list[list[int]]:
    """The `count` channels of the highest score in every layer, ascending; ties go to the lower channel.

    Args:
        scores: [num_hidden_layers, channels], the channels of the widest layer.
        count: channels to keep in a layer of width 1.
        widths: for every layer, how many times as many channels it has and keeps (`ModelSource.ffn_widths`); None
            where all layers are alike.
    """
    widths = widths or [1] * len(scores)
    narrow = scores.shape[1] // max(widths)
    kept = []
    for row, width in zip(scores, widths, strict=True):
        order = np.argsort(-row[: narrow * width], kind="stable")[: count * width]
        kept.append([int(channel) for channel in sorted(order)])
    return kept
