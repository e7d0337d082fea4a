"""Score FFN channels: by COMPACT's common act², or by one of the methods that it is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compact.base.devices import computed_on
from compact.base.files import sha256_json
from compact.calibration.calibration_set import Calibration
from compact.checkpoints.shards import open_tensors
from compact.pruning.context import Context
from compact.pruning.importance import Scores, bucket_of_ids, collect_scores, vocabulary_grid
from compact.pruning.ranking import rank_vocabulary
from compact.sources.model_source import ModelSource

# Increment when the meaning of collected scores changes, so that older cache entries are not used.
_SCORES_VERSION = 1


@dataclass(frozen=True)
class FixedScores:
    """Scores that do not depend on the vocabulary size.

    Attributes:
        values: float64 [num_hidden_layers, channels].
    """

    values: np.ndarray[Any, np.dtype[np.float64]]

    def at(self, vocab_size: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the scores [num_hidden_layers, channels]. They are the same for every V'."""
        del vocab_size
        return self.values


def act2_scores(context: Context, calibration: Calibration, vocab_size: int | None = None) -> Scores:
    """Return common act² scores for every vocabulary size on the grid, and for `vocab_size`.

    The scores come from the cache. If they are missing, this runs a calibration pass.

    Args:
        context: the model and the options.
        calibration: the sequences to run the model over.
        vocab_size: V' that need not be on the grid, or None for the grid only.

    Raises:
        CompactEdgeError: an error of ranking the vocabulary or of `compact.pruning.importance.collect_scores`.
    """
    source, options, ranking = context.source, context.options, context.once(rank_vocabulary)
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
            progress=context.progress,
        )
        scores.save(work / "scores.npz")

    needed = source.num_hidden_layers * (len(edges) + 1) * source.intermediate_size * max(source.ffn_widths) * 8
    directory = context.cache.get_or_make("scores", key, make, needed_bytes=needed, together=True)
    return Scores.load(directory / "scores.npz")


def random_scores(source: ModelSource, seed: int) -> FixedScores:
    """Return uniformly distributed random scores for a seed."""
    return FixedScores(np.random.default_rng(seed).random(_shape(source)))


def magnitude_scores(source: ModelSource) -> FixedScores:
    """Score each channel by the product of the norms of its gate row, up row and down column."""
    scores = np.zeros(_shape(source))
    with open_tensors(source.tensors) as read:
        for layer in range(len(scores)):
            norms = [
                read(f"model.layers.{layer}.mlp.{part}_proj.weight").double().norm(dim=dim)
                for part, dim in (("gate", 1), ("up", 1), ("down", 0))
            ]
            product = norms[0] * norms[1] * norms[2]
            scores[layer, : len(product)] = product.numpy()
    return FixedScores(scores)


def _shape(source: ModelSource) -> tuple[int, int]:
    """Return (number of layers, channels of the widest layer)."""
    return source.num_hidden_layers, source.intermediate_size * max(source.ffn_widths)
