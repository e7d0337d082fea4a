"""From a model and a budget to a plan, and from a plan to a checkpoint: the host side in two calls."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compact import calibration as calibrating
from compact.apply import apply_plan
from compact.budget import Sizes
from compact.budget_options import is_searched
from compact.cache import Cache
from compact.calibration import Calibration, make_calibration
from compact.calibration_scripts import default_calibration
from compact.checkpoint import open_tensors
from compact.errors import DamagedFileError, UsageError
from compact.hub import names_hub_model
from compact.hub_dataset import names_hub_dataset, require_datasets
from compact.importance import Scores, bucket_of_ids, collect_scores, computed_on, top_channels, vocabulary_grid
from compact.plan import SCHEMA, PrunePlan
from compact.pretokenizers import pre_name
from compact.progress import SILENT, Progress
from compact.ranking import AUTO, Ranking, rank_vocabulary
from compact.recovery.options import RecoverOptions
from compact.recovery.text import check_texts
from compact.sampling import SAMPLE_LENGTH, sample_texts
from compact.sizes import sizes_of
from compact.source import TINY, TOKENIZER, ModelSource
from compact.store import read_json_object, sha256_json
from compact.vocabulary import kept_ids

METHODS = ("compact", "repair", "magnitude", "random")
# Those whose channels are scored by activations, and which need a calibration.
CALIBRATED = ("compact", "repair")
REPAIR_TOKENS = ("final", "common")
# Raised when the scores that one pass collects change their meaning, so that older cache entries are not used.
_SCORES_VERSION = 1


@dataclass(frozen=True)
class PruneOptions:
    """What a user can ask of a plan; the command's flags.

    Attributes:
        ratio: share of all parameters to remove; used where neither size is given.
        vocab_size, intermediate_size: explicit final sizes.
        fit_bytes: most bytes that the artifact may have.
        split: `auto` searches how to share a ratio or `fit_bytes` between vocabulary and FFN (`compact.search`; the
            default of `fit_bytes`), `V:I` gives the shares; None takes the fixed split of a ratio.
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
        method: `compact`; `repair` adapts what stays (`compact.repair`); `magnitude` and `random` are there to compare
            with.
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


def check_calibration(model: str, options: PruneOptions) -> None:
    """Refuse texts that cannot be read here, before a model is fetched.

    Raises:
        ToolUnavailableError: a Hub data set without the package that reads it.
        CalibrationError: a text to learn from that is not there. UsageError: one of two is a part of the other.
    """
    default = (calibrating.C4,) if names_hub_model(model) else ()
    for name in options.calibration or default:
        if options.method in CALIBRATED and names_hub_dataset(name):
            require_datasets(name)
    check_texts_to_learn(options, default)


def check_texts_to_learn(options: PruneOptions, default: tuple[str, ...]) -> None:
    """Refuse texts of a recovery that cannot be read here. Raises what `compact.recovery.text.check_texts` does.

    Args:
        options: what the user asked for.
        default: the calibration where the user names none.
    """
    if options.recover is not None:
        is_calibration = not options.recover.text and bool(options.calibration)
        texts = texts_to_learn(options, default)
        check_texts(texts, "--calibration" if is_calibration else "--recover-text")


def texts_to_learn(options: PruneOptions, default: tuple[str, ...]) -> tuple[str, ...]:
    """What a recovery learns from: its own texts, else the calibration's, which are `default` where none are named."""
    own = () if options.recover is None else options.recover.text
    return own or options.calibration or default


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
    length = options.sequence_length or min(calibrating.DEFAULT_SEQUENCE_LENGTH, limit)
    if not 16 <= length <= limit:
        raise UsageError(f"--sequence-length {length}: this model takes 16 to {limit}")
    names = options.calibration or default_calibration(source)
    from_hub = any(names_hub_dataset(name) for name in names)
    tokens = options.calibration_tokens
    if tokens is None:
        small = calibrating.TINY_TOKENS if source.origin == TINY else calibrating.DEFAULT_TOKENS
        tokens = calibrating.HUB_TOKENS if from_hub else small
        if from_hub:
            progress.note(
                f"calibrating on {tokens:,} tokens of {' and '.join(names)}, which takes long without a GPU; "
                f"--calibration-tokens {calibrating.DEFAULT_TOKENS} or --calibration {calibrating.STDLIB_PROSE} "
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


def make_plan(
    source: ModelSource,
    options: PruneOptions,
    cache: Cache,
    *,
    calibration: Calibration | None = None,
    ranking: Ranking | None = None,
    sizes: Sizes | None = None,
    progress: Progress = SILENT,
) -> PrunePlan:
    """Decide what stays.

    Args:
        source: the checked checkpoint.
        options: budget, ranking, calibration and method.
        cache: keeps the scores of a calibration pass, which serve every vocabulary size on the grid.
        calibration: drawn already, where the caller needs it too.
        ranking: of the vocabulary, where the caller has it; it takes seconds for a large one.
        sizes: the final sizes, where they were searched; None takes them from the options.
        progress: told of the calibration pass.
    """
    if options.method not in METHODS:
        raise UsageError(f"--method {options.method!r}: unknown", f"one of: {', '.join(METHODS)}")
    if options.repair_tokens not in REPAIR_TOKENS:
        raise UsageError(f"--repair-tokens {options.repair_tokens!r}: unknown", f"one of: {', '.join(REPAIR_TOKENS)}")
    pre = pre_name(read_json_object(source.directory / TOKENIZER))
    ranking = ranking or rank_vocabulary(source, options, cache, progress)
    sizes = sizes or sizes_of(source, ranking, options)
    floor = ranking.floor_at(sizes.vocab_size)
    kept = kept_ids(ranking.vocabulary, ranking.always, ranking.order, sizes.vocab_size)
    used: Calibration | None = None
    if sizes.intermediate_size == source.intermediate_size:
        channels = [list(range(source.intermediate_size * width)) for width in source.ffn_widths]
    else:
        if options.method in CALIBRATED:
            used = calibration or calibration_for(source, options, cache=cache, progress=progress)
            scores = common_act2(source, used, ranking, sizes, options, cache, progress)
        else:
            scores = reference_scores(source, options.method, options.seed)
        channels = top_channels(scores, sizes.intermediate_size, source.ffn_widths)
    asked = {
        "ratio": options.ratio,
        "vocab_size": options.vocab_size,
        "intermediate_size": options.intermediate_size,
        "fit_bytes": options.fit_bytes,
        "split": options.split,
        "channel_grid": options.channel_grid,
        "pad_vocab_to_multiple_of": options.pad_vocab_to_multiple_of,
        "vocab_floor": floor,
        "languages": list(ranking.languages),
        "scripts": list(ranking.scripts),
        "dtype": options.dtype,
        "seed": options.seed,
    }
    return PrunePlan(
        schema=SCHEMA,
        source_name=source.name,
        source_id=source.id,
        source_hashes=dict(source.hashes),
        options=asked,
        method=options.method,
        ranking=ranking.name,
        ranking_sha256=ranking.corpus_sha256,
        calibration=None if used is None else _describe(used),
        pre=pre,
        kept_token_ids=kept,
        kept_channels=channels,
    )


def _describe(calibration: Calibration) -> dict[str, Any]:
    return {
        "name": calibration.label,
        "sha256": calibration.sha256,
        "id": calibration.id,
        "n_tokens": calibration.n_tokens,
        "sources": [asdict(source) for source in calibration.sources],
        **calibration.options,
    }


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


def prune(
    source: ModelSource,
    plan: PrunePlan,
    target: Path,
    *,
    updates: Path | None = None,
    progress: Progress = SILENT,
) -> None:
    """Apply a plan into `target` (a directory that `store.publish` yielded) and check what was written.

    Args:
        source: the checkpoint that the plan was made for.
        plan: what to keep.
        target: where the files go.
        updates: the `updates.safetensors` that the plan names, where it names one.
        progress: told of every tensor.

    Raises:
        DamagedFileError: a checkpoint of other sizes than the plan's came out, which would be a bug of ours.
    """
    apply_plan(source, plan, target, updates=updates, progress=progress)
    config = read_json_object(target / "config.json")
    if (config["vocab_size"], config["intermediate_size"]) != (plan.vocab_size, plan.intermediate_size):
        raise DamagedFileError(f"{target}: the sizes written differ from the plan's")


def options_as_json(options: PruneOptions) -> dict[str, Any]:
    """The options for a manifest: files by their name only, so that equal builds in two places are equal bytes."""
    values: dict[str, Any] = {k: v.name if isinstance(v, Path) else v for k, v in asdict(options).items()}
    values["calibration"] = [calibrating.plain_name(name) for name in options.calibration]
    if options.recover is not None:
        values["recover"]["text"] = [calibrating.plain_name(name) for name in options.recover.text]
    return values
