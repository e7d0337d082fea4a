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

from compact.base.distributed import all_reduce_sum, share, world_size
from compact.base.errors import DamagedFileError, EngineCrashedError, UsageError
from compact.base.progress import SILENT, Progress
from compact.forward.layerwise import LayerStream

if TYPE_CHECKING:
    import torch

MAX_EDGES = 64
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

    The layers run one after another (`compact.forward.layerwise`), so the model never lies in memory whole. Where
    several processes are joined (`compact.base.distributed`), each takes its share of the sequences, and all return the
    same sums.

    Raises:
        EngineCrashedError: activations overflow in `dtype`.
        UsageError, DataError, StorageError: as `compact.forward.layerwise.LayerStream`.
    """
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
    """Sums squares by layer and bucket (a `compact.forward.layerwise.Visitor`)."""

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
