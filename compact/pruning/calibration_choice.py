"""The calibration set that the options of a plan name."""

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
from compact.pruning.budget_options import is_searched
from compact.pruning.context import Context
from compact.pruning.methods import method_named
from compact.sources.model_source import TINY


def calibration_for(context: Context, *, keep_out: bool = False) -> Calibration:
    """Draw the calibration set that the options name: its sources, tokens, sequence length and seed.

    Args:
        context: the model, which writes the text of `self`, and the options. The cache keeps what comes from the Hub
            and what the model wrote.
        keep_out: hold text of every source out of the sequences, to judge choices on. Where the method or the search
            of sizes needs such text, it is held out anyway.

    Raises:
        UsageError: a sequence length or a number of tokens out of range, or an unknown method.
        CompactEdgeError: what `compact.calibration.calibration_set.make_calibration` raises.
    """
    source, options = context.source, context.options
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
            context.progress.note(
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
        keep_out=keep_out or method_named(options.method).needs_held_out or is_searched(options),
        sampler=write,
        cache=context.cache,
        progress=context.progress,
    )
