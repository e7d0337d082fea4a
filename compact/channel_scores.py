"""The scores by which FFN channels are kept: COMPACT's common act², and those that it is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from compact.budget import Sizes
from compact.cache import Cache
from compact.calibration import Calibration
from compact.checkpoint import open_tensors
from compact.devices import computed_on
from compact.importance import Scores, bucket_of_ids, collect_scores, vocabulary_grid
from compact.progress import Progress
from compact.prune_options import PruneOptions
from compact.ranking import Ranking
from compact.source import ModelSource
from compact.store import sha256_json

# Raised when the scores that one pass collects change their meaning, so that older cache entries are not used.
_SCORES_VERSION = 1


def common_act2(
    source: ModelSource,
    calibration: Calibration,
    ranking: Ranking,
    sizes: Sizes,
    options: PruneOptions,
    cache: Cache,
    progress: Progress,
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Scores [num_hidden_layers, channels] at the plan's vocabulary size, from the cache where they are."""
    scores = act2_scores(source, calibration, ranking, sizes.vocab_size, options, cache, progress)
    return scores.at(sizes.vocab_size)


def act2_scores(
    source: ModelSource,
    calibration: Calibration,
    ranking: Ranking,
    vocab_size: int | None,
    options: PruneOptions,
    cache: Cache,
    progress: Progress,
) -> Scores:
    """Scores of every vocabulary size on the grid, and of `vocab_size`, from the cache where they are."""
    smallest, multiple = len(ranking.always), options.pad_vocab_to_multiple_of
    grid = vocabulary_grid(source.vocab_size, smallest, multiple=multiple)
    on_grid = vocab_size is None or vocab_size in grid
    edges = grid if on_grid else vocabulary_grid(source.vocab_size, smallest, vocab_size, multiple)
    key = sha256_json(
        {
            "version": _SCORES_VERSION,
            "source": source.id,
            "calibration": calibration.id,
            "order": sha256_json([sorted(ranking.always), ranking.order]),
            "edges": edges,
            **computed_on(options.device, options.dtype),
            "batch_size": options.batch_size,
        }
    )

    def make(work: Path) -> None:
        buckets = bucket_of_ids(source.vocab_size, ranking.always, ranking.order, edges)
        scores = collect_scores(
            source.directory,
            calibration.sequences,
            buckets,
            edges,
            device=options.device,
            dtype=options.dtype,
            batch_size=options.batch_size,
            scratch=work,
            progress=progress,
        )
        scores.save(work / "scores.npz")

    needed = source.num_hidden_layers * (len(edges) + 1) * source.intermediate_size * max(source.ffn_widths) * 8
    directory = cache.get_or_make("scores", key, make, needed_bytes=needed, together=True)
    return Scores.load(directory / "scores.npz")


def reference_scores(source: ModelSource, method: str, seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Scores of the methods that COMPACT is compared with.

    `magnitude`: product of the norms of a channel's gate row, up row and down column. `random`: uniform, by the seed.
    """
    shape = (source.num_hidden_layers, source.intermediate_size * max(source.ffn_widths))
    if method == "random":
        return np.random.default_rng(seed).random(shape)
    scores = np.zeros(shape)
    with open_tensors(source.tensors) as read:
        for layer in range(shape[0]):
            norms = [
                read(f"model.layers.{layer}.mlp.{part}_proj.weight").double().norm(dim=dim)
                for part, dim in (("gate", 1), ("up", 1), ("down", 0))
            ]
            product = norms[0] * norms[1] * norms[2]
            scores[layer, : len(product)] = product.numpy()
    return scores
