"""The options of `prune` and `build` that determine a plan."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compact.calibration.calibration_set import plain_name
from compact.pruning.budget_options import MinSpeed
from compact.pruning.recover_options import RecoverOptions

# `--vocab-rank`.
AUTO, MERGES = "auto", "merges"
# `--repair-tokens`.
REPAIR_TOKENS = ("final", "common")


@dataclass(frozen=True)
class PruneOptions:
    """The options that determine a plan. They correspond to the flags of the command line.

    Attributes:
        ratio: share of all parameters to remove, used if no other budget is given. None uses the default ratio.
        vocab_size, intermediate_size: explicit final sizes.
        fit_bytes: largest size of the artifact's files, in bytes.
        max_memory_bytes: largest resident memory of the running model, in bytes.
        max_loss: largest increase of bits per byte over the unpruned model's, as a share: 0.03 means 3%.
        min_speed: smallest decode speed on the target's device.
        search_minutes: time limit of the search, in minutes.
        split: how a ratio or `fit_bytes` is divided between vocabulary and FFN. `auto` searches for the best split
            (`compact.search.find`). `V:I` gives the shares. `proportional` is a fixed rule: the share of its
            parameters that the vocabulary loses is twice the FFN's. None means `auto` with a limit, and the smallest
            predicted loss for a ratio (`compact.search.ratio`).
        channel_grid: `intermediate_size` must be a multiple of this, for the quantization.
        pad_vocab_to_multiple_of: `vocab_size` must be a multiple of this.
        languages: BCP 47 codes, or `code`. Tokens are ranked by how often text in these languages uses them.
        vocab_rank: `auto` ranks by the languages, or by the scripts of the calibration text. `merges` ranks by merge
            order alone.
        vocab_coverage: choose the smallest V' that keeps this share of the languages' tokens whole, 0 to 1.
        vocab_corpus: a file. Tokens are also ranked by their frequency in it.
        vocab_floor: with `vocab_corpus`, keep at least this many droppable tokens of the ranking without the corpus.
            None means half.
        keep_tokens: a file of tokens to keep, one per line, spelled as in tokenizer.json.
        calibration: files, built-in texts, Hub data sets or `self`. Each gives an equal share of the tokens. If empty,
            the model's default is used.
        calibration_tokens, sequence_length, seed: size and random seed of the calibration set. None means 32,768 tokens
            (8,192 for `tiny`, 524,288 with a Hub data set), and sequences of 2048 tokens or the model's maximum if that
            is smaller.
        repair_tokens: the text that `repair` fits to. `final` uses the pruned tokenizer. `common` uses the original
            one and ignores positions of dropped tokens, as COMPACT's weights do.
        method: name of a method in `compact.pruning.methods`.
        recover: how to train the model after pruning, or None for no training.
        device, dtype, batch_size: settings of the calibration pass.
    """

    ratio: float | None = None
    vocab_size: int | None = None
    intermediate_size: int | None = None
    fit_bytes: int | None = None
    max_memory_bytes: int | None = None
    max_loss: float | None = None
    min_speed: MinSpeed | None = None
    search_minutes: float | None = None
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
    """Return the options for a manifest.

    Files are listed by name, without their directory. The manifest is then the same wherever the build runs.
    """
    values: dict[str, Any] = {k: v.name if isinstance(v, Path) else v for k, v in asdict(options).items()}
    values["calibration"] = [plain_name(name) for name in options.calibration]
    if options.recover is not None:
        values["recover"]["text"] = [plain_name(name) for name in options.recover.text]
    return values
