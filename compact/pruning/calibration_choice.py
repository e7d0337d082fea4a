"""Draw the calibration set that the options of a plan describe."""

from __future__ import annotations

from compact.base.errors import UsageError
from compact.calibration.calibration_set import (
    DEFAULT_SEQUENCE_LENGTH,
    DEFAULT_TOKENS,
    HUB_TOKENS,
    STDLIB_PROSE,
    TINY_TOKENS,
    Calibration,
    make_calibration,
)
from compact.calibration.default_text import default_calibration
from compact.calibration.hub_dataset import names_hub_dataset
from compact.calibration.sampling import SAMPLE_LENGTH, sample_texts
from compact.pruning.budget_options import is_predicted, is_searched
from compact.pruning.context import Context
from compact.pruning.methods import method_named
from compact.sources.model_source import TINY


def calibration_for(context: Context, *, keep_out: bool = False) -> Calibration:
    """Draw the calibration set that the options describe: its sources, tokens, sequence length and seed.

    Args:
        context: the model and the options. The model writes the text of the source `self`. The cache stores this text
            and everything that is downloaded from the Hub.
        keep_out: hold out some text of every source, for evaluation. Text is always held out if the method or the
            search for sizes needs it.

    Raises:
        UsageError: the sequence length or the number of tokens is out of range, or the method is unknown.
        CompactEdgeError: an error of `compact.calibration.calibration_set.make_calibration`.
    """
    source, options = context.source, context.options
    limit = source.max_positions
    length = options.sequence_length or min(DEFAULT_SEQUENCE_LENGTH, limit)
    if not 16 <= length <= limit:
        raise UsageError(f"--sequence-length {length}: this model accepts 16 to {limit}")
    names = options.calibration or default_calibration(source)
    from_hub = any(names_hub_dataset(name) for name in names)
    tokens = options.calibration_tokens
    if tokens is None:
        small = TINY_TOKENS if source.origin == TINY else DEFAULT_TOKENS
        tokens = HUB_TOKENS if from_hub else small
        if from_hub:
            context.progress.note(
                f"calibrating on {tokens:,} tokens of {' and '.join(names)}, which is slow without a GPU; "
                f"use --calibration-tokens {DEFAULT_TOKENS} or --calibration {STDLIB_PROSE} "
                "to make it faster"
            )
    if tokens < 16 * len(names):
        raise UsageError(f"--calibration-tokens {tokens}: at least 16 per source are needed")

    def write(n_tokens: int) -> list[str]:
        return sample_texts(
            source.directory,
            n_tokens,
            sequence_length=min(length, SAMPLE_LENGTH),
            seed=options.seed,
            device=options.device,
            dtype=options.dtype,
            cache=context.cache,
            source_id=source.id,
            progress=context.progress,
        )

    return make_calibration(
        names,
        source.directory,
        tokens=tokens,
        sequence_length=length,
        seed=options.seed,
        keep_out=keep_out
        or method_named(options.method).needs_held_out
        or is_searched(options)
        or is_predicted(options),
        sampler=write,
        cache=context.cache,
        progress=context.progress,
    )
