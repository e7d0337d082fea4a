"""Common act²: the importance of every FFN channel (COMPACT, arXiv 2509.06836).

`I_k = sum_i w_i * (act(x_i W_gate) * (x_i W_up))_k ^ 2`, with `w_i = 0` where the token at position i is in S (the
dropped tokens) and 1 elsewhere, from the *original* model and tokenizer. `w` depends on the vocabulary size V', so the
squares are summed per bucket of token rank: prefix sums over the buckets give the exact scores of every V' whose edge
is there, from one pass.
"""

from __future__ import annotations

import tempfile
import zipfile
import zlib
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compact.errors import DamagedFileError, EngineCrashedError, UsageError
from compact.progress import SILENT, Progress

if TYPE_CHECKING:
    import torch

MAX_EDGES = 64
DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda", "mps")
# Positions whose squares are widened to float64 at once: bounds the extra memory for wide FFNs.
_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Scores:
    """Sums of squares per bucket of token rank.

    Attributes:
        edges: ascending vocabulary sizes V'; bucket e holds the tokens that V' = edges[e] keeps and edges[e-1] drops,
            the last bucket the tokens that no edge keeps.
        sums: float64 [num_hidden_layers, len(edges) + 1, intermediate_size].
    """

    edges: tuple[int, ...]
    sums: np.ndarray[Any, np.dtype[np.float64]]

    def at(self, vocab_size: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Exact scores [num_hidden_layers, intermediate_size] for V' = `vocab_size`.

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


def vocabulary_grid(vocab_size: int, smallest: int, asked: int | None = None) -> tuple[int, ...]:
    """Vocabulary sizes whose scores one pass collects: at most 64 evenly spaced ones above `smallest`, and `asked`."""
    step = max(1, -(-vocab_size // MAX_EDGES))
    edges = set(range(vocab_size, smallest - 1, -step))
    return tuple(sorted(edges | ({asked} if asked is not None else set())))


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
    progress: Progress = SILENT,
) -> Scores:
    """Run the original model once over the calibration set and sum act² per layer, bucket and channel.

    Args:
        model_dir: the original checkpoint.
        sequences: ids; those of equal length are batched.
        buckets: bucket of every id (`bucket_of_ids`).
        edges: the vocabulary sizes.
        device, dtype: where and how the forward pass runs; sums are float64 on every device that has it.
        batch_size: sequences a forward pass; does not change the result beyond 1e-6 of a layer's largest score.

    The sums of all layers lie in a mapped temporary file, so peak memory does not grow with layers times buckets, nor
    with the number of samples.
    """
    import torch

    place = resolve_device(device)
    model = load_model(model_dir, device=place, dtype=resolve_dtype(dtype, place))
    layers = model.model.layers
    shape = (len(layers), len(edges) + 1, int(model.config.intermediate_size))
    bucket_table = torch.tensor(buckets, dtype=torch.int64)
    current: dict[str, torch.Tensor] = {}
    with tempfile.TemporaryDirectory(prefix="compact-edge-") as scratch:
        sums = np.lib.format.open_memmap(Path(scratch) / "sums.npy", mode="w+", dtype=np.float64, shape=shape)

        def hook(layer: int) -> Any:
            def before_down_proj(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
                # The input of down_proj is act(x W_gate) * (x W_up): the paper's channel activations, [.., I].
                _add_squares(sums[layer], inputs[0].reshape(-1, shape[2]), current["buckets"])

            return before_down_proj

        handles = [layer.mlp.down_proj.register_forward_pre_hook(hook(n)) for n, layer in enumerate(layers)]
        try:
            total = sum(len(sequence) for sequence in sequences)
            with torch.inference_mode(), progress.task("calibrating", total, "tokens") as task:
                for batch in _batches(sequences, batch_size):
                    ids = torch.tensor(batch, dtype=torch.int64)
                    current["buckets"] = bucket_table[ids.reshape(-1)]
                    # The backbone alone: logits are not needed, and with a large vocabulary they cost the most.
                    model.model(input_ids=ids.to(place), use_cache=False)
                    task.advance(ids.numel())
        finally:
            for handle in handles:
                handle.remove()
        result = np.array(sums)
    if not np.isfinite(result).all():
        raise EngineCrashedError(
            f"{model_dir}: activations overflow in {dtype}", "calibrate with --dtype float32, or bfloat16"
        )
    return Scores(tuple(edges), result)


def _batches(sequences: Sequence[Sequence[int]], size: int) -> list[list[Sequence[int]]]:
    batches: list[list[Sequence[int]]] = []
    for sequence in sequences:
        if batches and len(batches[-1]) < size and len(batches[-1][0]) == len(sequence):
            batches[-1].append(sequence)
        else:
            batches.append([sequence])
    return batches


def _add_squares(sums: np.ndarray[Any, np.dtype[np.float64]], activations: torch.Tensor, buckets: torch.Tensor) -> None:
    """Add the squares of `activations` [positions, I] to `sums` [buckets, I], by the bucket of each position."""
    import torch

    wide = torch.float32 if activations.device.type == "mps" else torch.float64  # MPS has no float64
    total = torch.zeros(sums.shape, dtype=wide, device=activations.device)
    index = buckets.to(activations.device)
    for start in range(0, activations.shape[0], _ROWS_AT_ONCE):
        part = activations[start : start + _ROWS_AT_ONCE].to(wide)
        # Not in place: where the type is wide already, `part` is the model's own activations.
        total.index_add_(0, index[start : start + _ROWS_AT_ONCE], part.square())
    present = torch.unique(buckets).tolist()
    sums[present] += total[present].cpu().numpy().astype(np.float64)


def top_channels(scores: np.ndarray[Any, np.dtype[np.float64]], count: int) -> list[list[int]]:
    """The `count` channels of the highest score in every layer, ascending; ties go to the lower channel.

    Args:
        scores: [num_hidden_layers, intermediate_size].
    """
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return [[int(c) for c in sorted(row)] for row in order]
