"""Common act²: the importance of every FFN channel (COMPACT, arXiv 2509.06836).

The importance of channel k is

    I_k = sum_i w_i * (act(x_i W_gate) * (x_i W_up))_k ^ 2

The sum runs over the positions i of the calibration set, with the *original* model and tokenizer. The weight `w_i` is 0
if pruning drops the token at position i, and 1 otherwise.

The weights depend on the vocabulary size V'. One pass still serves many V': the squares are summed separately per
bucket of token rank. Each bucket ends at an edge, which is a vocabulary size. The exact scores for V' = edge are the
sum of all buckets up to this edge.
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
# Number of activations that the CPU converts to float64 and squares at once.
_CACHED_ELEMENTS = 1 << 16
# Number of positions per block on an accelerator.
_BLOCK_ROWS = 512


@dataclass(frozen=True)
class Scores:
    """Sums of squares per bucket of token rank.

    Attributes:
        edges: vocabulary sizes V', ascending. Bucket e holds the tokens that V' = edges[e] keeps and edges[e-1] drops.
            The last bucket holds the tokens that no edge keeps.
        sums: float64 [num_hidden_layers, len(edges) + 1, channels]. The last axis has the size of the widest layer.
            Narrower layers are padded with zeros.
    """

    edges: tuple[int, ...]
    sums: np.ndarray[Any, np.dtype[np.float64]]

    def at(self, vocab_size: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the exact scores for V' = `vocab_size`, float64 [num_hidden_layers, channels].

        Raises:
            UsageError: `vocab_size` is not an edge, so its exact scores were not collected.
        """
        at = bisect_left(self.edges, vocab_size)
        if at == len(self.edges) or self.edges[at] != vocab_size:
            raise UsageError(f"no scores were collected for --vocab-size {vocab_size}")
        total: np.ndarray[Any, np.dtype[np.float64]] = self.sums[:, : at + 1].sum(axis=1)
        return total

    def save(self, path: Path) -> None:
        """Write the scores as a NumPy `.npz` file."""
        np.savez(path, edges=np.array(self.edges, dtype=np.int64), sums=self.sums)

    @staticmethod
    def load(path: Path) -> Scores:
        """Read scores that `save` wrote. Raises DamagedFileError if the file is damaged."""
        try:
            with np.load(path, allow_pickle=False) as data:
                return Scores(tuple(int(e) for e in data["edges"]), data["sums"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise DamagedFileError(f"{path}: not a valid score file ({error})", "delete the cache") from error


def vocabulary_grid(vocab_size: int, smallest: int, asked: int | None = None, multiple: int = 1) -> tuple[int, ...]:
    """Return the vocabulary sizes whose scores one calibration pass collects, ascending.

    These are at most `MAX_EDGES` evenly spaced sizes from `smallest` to `vocab_size`, and `asked`.

    Args:
        vocab_size: size of the source's vocabulary.
        smallest: number of tokens that are always kept.
        asked: an additional size, or None.
        multiple: round every size down to a multiple of this, except `asked`.
    """
    step = max(1, -(-vocab_size // MAX_EDGES))
    edges = {size // multiple * multiple for size in range(vocab_size, smallest - 1, -step)}
    return tuple(sorted({edge for edge in edges if edge >= smallest} | ({asked} if asked is not None else set())))


def bucket_of_ids(n_rows: int, always: frozenset[int], ranking: Sequence[int], edges: Sequence[int]) -> list[int]:
    """Return the bucket of every source id: the index of the first edge that keeps it, or `len(edges)` if none does.

    V' = v keeps the ids in `always` and the first `v - len(always)` ids of the ranking.

    Args:
        n_rows: number of rows of the source's embedding.
        always: ids that are always kept.
        ranking: all other ids that can be kept, best first.
        edges: vocabulary sizes, ascending.
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

    The layers run one after another (`compact.forward.layerwise`), so the whole model is never in memory. If several
    processes run together (`compact.base.distributed`), each one takes its share of the sequences, and all return the
    same sums.

    Args:
        model_dir: the original checkpoint.
        sequences: token ids. Neighbours of equal length are batched.
        buckets: the bucket of every id, from `bucket_of_ids`.
        edges: vocabulary sizes, ascending.
        device, dtype: device and type of the forward pass. Sums are float64. An accelerator first sums blocks in
            float32.
        batch_size: sequences per forward pass. It changes the scores by at most 1e-6 of a layer's largest score.
        scratch: directory for hidden states that do not fit in memory. None uses the system's temporary directory.
        progress: receives the number of tokens done.

    Raises:
        EngineCrashedError: activations overflow in `dtype`.
        UsageError, DataError, StorageError: an error of `compact.forward.layerwise.LayerStream`.
    """
    own = share(sequences)
    stream = LayerStream(model_dir, own, device=device, dtype=dtype, batch_size=batch_size, scratch=scratch)
    sums = np.zeros((stream.n_layers, len(edges) + 1, max(stream.channels)), dtype=np.float64)
    description = "calibrating" if world_size() == 1 else f"calibrating (1 of {world_size()} processes)"
    stream.run(_Act2(stream, buckets, sums), progress=progress, description=description)
    if not np.isfinite(sums).all():
        raise EngineCrashedError(
            f"{model_dir}: activations overflow in {dtype}", "calibrate with --dtype float32 or bfloat16"
        )
    return Scores(tuple(edges), sums)


class _Act2:
    """Sums squares per layer and bucket. It is a `compact.forward.layerwise.Visitor`."""

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
    # Use blocks that fit in the processor's cache. Larger blocks are many times slower.
    rows = max(1, _CACHED_ELEMENTS // activations.shape[1])
    for start in range(0, activations.shape[0], rows):
        # Do not square in place: if the activations are float64 already, `to` returns the model's own memory.
        squares = activations[start : start + rows].to(torch.float64).square()  # [rows, I]
        total.index_add_(0, buckets[start : start + rows], squares)


def _add_by_products(total: torch.Tensor, activations: torch.Tensor, buckets: torch.Tensor) -> None:
    """Do the same as `_add_squares` on an accelerator, in float32 within a block of positions.

    The squares are multiplied by a one-hot matrix of the buckets. `index_add_` would be slow here, because thousands
    of threads would wait to update the same few sums.
    """
    import torch

    for start in range(0, activations.shape[0], _BLOCK_ROWS):
        squares = activations[start : start + _BLOCK_ROWS].to(torch.float32).square()  # [block, I]
        # [block, buckets]
        chosen = torch.nn.functional.one_hot(buckets[start : start + _BLOCK_ROWS], total.shape[0])
        total += torch.mm(chosen.T.to(torch.float32), squares).to(total.device)


def top_channels(
    scores: np.ndarray[Any, np.dtype[np.float64]], count: int, widths: Sequence[int] | None = None
) -> list[list[int]]:
    """Select the channels with the highest scores in every layer. If two scores are equal, the lower channel wins.

    Args:
        scores: [num_hidden_layers, channels]. The last axis has the size of the widest layer.
        count: number of channels to keep in a layer of width 1.
        widths: relative width of every layer (`ModelSource.ffn_widths`). A layer of width 2 has and keeps twice as many
            channels. None means that all layers have the same width.

    Returns:
        The kept channels of every layer, ascending.
    """
    widths = widths or [1] * len(scores)
    narrow = scores.shape[1] // max(widths)
    kept = []
    for row, width in zip(scores, widths, strict=True):
        order = np.argsort(-row[: narrow * width], kind="stable")[: count * width]
        kept.append([int(channel) for channel in sorted(order)])
    return kept
