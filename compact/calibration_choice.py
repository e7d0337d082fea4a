"""The calibration set that the options of a plan name."""

from __future__ import annotations

from compact.budget_options import is_searched
from compact.cache import Cache
from compact.calibration import (
    DEFAULT_SEQUENCE_LENGTH,
    DEFAULT_TOKENS,
    HUB_TOKENS,
    STDLIB_PROSE,
    TINY_TOKENS,
    Calibration,
    make_calibration,
)
from compact.calibration_scripts import default_calibration
from compact.errors import UsageError
from compact.hub_dataset import names_hub_dataset
from compact.progress import SILENT, Progress
from compact.prune_options import PruneOptions
from compact.sampling import SAMPLE_LENGTH, sample_texts
from compact.source import TINY, ModelSource


def calibration_for(
    source: ModelSource,
    options: PruneOptions,
    *,
    keep_out: bool = False,
    cache: Cache | None = None,
    progress: Progress = SILENT,
) -> Calibration:
    """The calibration set that the options name.

    Args:
        source: the checkpoint; it writes the text of `self`.
        options: sources, tokens, sequence length and seed.
        keep_out: hold text of every source out of the sequences, for what judges on it; `repair` always does.
        cache, progress: for a source that comes from the Hub or is written by the model.
    """
    limit = source.max_positions
    length = options.sequence_length or min(DEFAULT_SEQUENCE_LENGTH, limit)
    if not 16 <= length <= limit:
        raise UsageError(f"--sequence-length {length}: this model takes 16 to {limit}")
    names = options.calibration or default_calibration(source)
    from_hub = any(names_hub_dataset(name) for name in names)
    tokens = options.calibration_tokens
    if tokens is None:
        small = TINY_TOKENS if source.origin == TINY else DEFAULT_TOKENS
        tokens = HUB_TOKENS if from_hub else small
        if from_hub:
            progress.note(
                f"calibrating on {tokens:,} tokens of {' and '.join(names)}, which takes long without a GPU; "
                f"--calibration-tokens {DEFAULT_TOKENS} or --calibration {STDLIB_PROSE} "
                "makes it quicker"
            )
    if tokens < 16 * len(names):
        raise UsageError(f"--calibration-tokens {tokens}: at least 16 of every source are needed")

    def write(n_tokens: int) -> list[str]:
        return sample_texts(
            source.directory,
            n_tokens,
            sequence_length=min(length, SAMPLE_LENGTH),
            seed=options.seed,
            device=options.device,
            dtype=options.dtype,
            cache=cache,
            source_id=source.id,
            progress=progress,
        )

    return make_calibration(
        names,
        source.directory,
        tokens=tokens,
        sequence_length=length,
        seed=options.seed,
        keep_out=keep_out or options.method == "repair" or is_searched(options),
        sampler=write,
        cache=cache,
        progress=progress,
    )
