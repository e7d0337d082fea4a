"""What a user can ask of a plan: the options of `prune` and `build`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compact.calibration.calibration_set import plain_name
from compact.pruning.recover_options import RecoverOptions

# `--vocab-rank`.
AUTO, MERGES = "auto", "merges"
# `--repair-tokens`.
REPAIR_TOKENS = ("final", "common")


@dataclass(frozen=True)
class PruneOptions:
    """What a user can ask of a plan; the command's flags.

    Attributes:
        ratio: share of all parameters to remove; used where neither size is given.
        vocab_size, intermediate_size: explicit final sizes.
        fit_bytes: most bytes that the artifact may have.
        split: `auto` searches how to share a ratio or `fit_bytes` between vocabulary and FFN (`compact.search.find`;
            the default of `fit_bytes`), `V:I` gives the shares; None takes the fixed split of a ratio.
        channel_grid: what the quantization wants `intermediate_size` to be a multiple of.
        pad_vocab_to_multiple_of: what `vocab_size` must be a multiple of.
        languages: BCP 47 codes and `code`: rank tokens by how often text in them uses each.
        vocab_rank: `auto` ranks by the languages, or by the scripts of the calibration; `merges` by merge order alone.
        vocab_coverage: the final V' is the smallest that keeps this share of the languages' tokens whole, 0 to 1.
        vocab_corpus: rank tokens by their frequency in this file too.
        vocab_floor: with `vocab_corpus`, so many droppable tokens of the ranking without it stay; None takes half.
        keep_tokens: file of tokens to keep, one a line, as tokenizer.json spells them.
        calibration: files, built-in texts, Hub data sets or `self`, which give equal shares of the tokens; none takes
            the model's default.
        calibration_tokens, sequence_length, seed: of the calibration set. None takes 32,768 tokens (8,192 for `tiny`,
            524,288 where a Hub data set is among them), and sequences of the smaller of 2048 and the model's maximum.
        repair_tokens: what `repair` fits to: `final`, the text as the pruned tokenizer cuts it, or `common`, as the
            original one does, where dropped tokens weigh nothing (COMPACT's weights).
        method: `compact`; `repair` adapts what stays (`compact.repair.run`); `magnitude` and `random` are there to
            compare with.
        recover: how the model is trained after the cut; None leaves it as it is.
        device, dtype, batch_size: of the calibration pass.
    """

    ratio: float | None = None
    vocab_size: int | None = None
    intermediate_size: int | None = None
    fit_bytes: int | None = None
    split: str | None = None
    channel_grid: int = 32
    pad_vocab_to_multiple_of: int = 1
    languages: tuple[str, ...] = ()
    vocab_rank: str = AUTO
    vocab_coverage: float | None = None
    vocab_corpus: Path | None = None
    vocab_floor: int | None = None
    keep_tokens: Path | None = None
    calibration: tuple[str, ...] = ()
    calibration_tokens: int | None = None
    sequence_length: int | None = None
    seed: int = 0
    method: str = "compact"
    repair_tokens: str = "final"
    recover: RecoverOptions | None = None
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int = 1


def options_as_json(options: PruneOptions) -> dict[str, Any]:
    """The options for a manifest: files by their name only, so that equal builds in two places are equal bytes."""
    values: dict[str, Any] = {k: v.name if isinstance(v, Path) else v for k, v in asdict(options).items()}
    values["calibration"] = [plain_name(name) for name in options.calibration]
    if options.recover is not None:
        values["recover"]["text"] = [plain_name(name) for name in options.recover.text]
    return values
