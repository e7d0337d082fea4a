"""Turn a model and a user's options into a decision: the plan, and the tensors that replace the plan's, if any.

`decide` calls the stages in a fixed order, so that every command makes the same decision:

1. Search for the sizes, if `--fit` or `--split auto` asks for it. Otherwise compute them from the options.
2. Choose what stays (`compact.pruning.planning.make_plan`).
3. Adapt the weights, if the method does (`repair`).
4. Train the pruned model, if `--recover` asks for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from compact.base.cache import Cache
from compact.base.errors import PlanMismatchError
from compact.base.progress import SILENT, Progress
from compact.calibration.default_text import default_calibration
from compact.pruning.apply import prune
from compact.pruning.budget import DEFAULT_RATIO, Sizes
from compact.pruning.budget_options import check_budget, is_predicted, is_searched
from compact.pruning.calibration_choice import calibration_for
from compact.pruning.context import Context
from compact.pruning.methods import method_named
from compact.pruning.plan import PLAN, UPDATES, PrunePlan, check_plan, read_plan
from compact.pruning.planning import make_plan
from compact.pruning.ranking import rank_vocabulary
from compact.pruning.sizes import sizes_of
from compact.requested_texts import check_texts_to_learn, texts_to_learn
from compact.search.find import Found, SizeOf, curve_of, find_sizes
from compact.search.ratio import predicted_sizes
from compact.sources.model_source import ModelSource

# Increment when the same plan produces different checkpoint files.
PRUNE_VERSION = 3


@dataclass(frozen=True)
class Decision:
    """The input of `compact.pruning.apply.prune`.

    Attributes:
        plan: which tokens and channels stay.
        updates: path of the `updates.safetensors` that the plan names, or None if it names none.
    """

    plan: PrunePlan
    updates: Path | None = None


def decide(context: Context, *, size_of: SizeOf | None = None, found: Found | None = None) -> Decision:
    """Decide which tokens and channels stay, and which weights change.

    Args:
        context: the model, the user's options, and the cache that stores the result of every stage.
        size_of: computes the size of the artifact in bytes from V' and I'. Required for `options.fit_bytes`.
        found: sizes that were found before. None: find them here.

    Raises:
        UsageError: two options exclude each other.
        BudgetError: the budget cannot be reached.
        CompactEdgeError: a stage failed.
    """
    source, options = context.source, context.options
    check_budget(options)
    check_texts_to_learn(options, default_calibration(source))
    adapt = method_named(options.method).adapter
    search = None
    if found is not None:
        sizes, search = found.sizes, found.record
    elif options.fit_bytes is not None or is_searched(options):
        found = find_sizes(context, size_of=size_of)
        sizes, search = found.sizes, found.record
    elif is_predicted(options):
        ranking = context.once(rank_vocabulary)
        ratio = DEFAULT_RATIO if options.ratio is None else options.ratio
        predicted = predicted_sizes(context, curve_of(source, ranking, options), ratio, size_of)
        sizes = sizes_of(source, ranking, options) if predicted is None else predicted.sizes
        search = None if predicted is None else predicted.record
    else:
        sizes = sizes_of(source, context.once(rank_vocabulary), options)
    _warn_of_memory(context, sizes)
    decision = Decision(replace(make_plan(context, sizes), search=search))
    if adapt is not None:
        decision = Decision(*adapt(context, decision.plan, context.once(calibration_for)))
    return decision if options.recover is None else _distill(context, decision)


def read_decision(folder: Path, source: ModelSource) -> Decision:
    """Read an earlier decision from a folder: `plan.json`, and `updates.safetensors` if the plan names it.

    Raises:
        DamagedFileError: the plan is damaged.
        PlanMismatchError: the plan was made for other weights, or its updates are missing.
    """
    plan = read_plan(folder / PLAN)
    check_plan(plan, source)
    if plan.updates_sha256 is None:
        return Decision(plan)
    updates = folder / UPDATES
    if not updates.is_file():
        raise PlanMismatchError(f"{folder / PLAN}: the plan needs {UPDATES}, which is missing", f"put it beside {PLAN}")
    return Decision(plan, updates)


def pruned_checkpoint(
    source: ModelSource, decision: Decision, cache: Cache, *, progress: Progress = SILENT
) -> tuple[Path, str]:
    """Return the path of the pruned checkpoint in the cache, and its cache key. Make the checkpoint if needed."""

    def make(work: Path) -> None:
        prune(source, decision.plan, work, updates=decision.updates, progress=progress)

    name = f"{decision.plan.id}-{PRUNE_VERSION}"
    return cache.get_or_make("pruned", name, make, needed_bytes=4 * source.n_params), name


def _warn_of_memory(context: Context, sizes: Sizes) -> None:
    """Warn early if distillation will probably need more memory than is free.

    This does not stop the build: more memory may be free when training starts, or the trained model may be in the
    cache. Training itself checks the memory again.
    """
    options = context.options
    if options.recover is None:
        return
    from compact.distill.run import memory_of  # imports torch, so only when it is needed

    needed, free = memory_of(context.source, sizes, options.recover, options.device, options.dtype)
    if needed > free:
        context.progress.note(
            f"warning: --recover distill will need about {needed / 1e9:.1f} GB of memory, "
            f"but only {free / 1e9:.1f} GB are free"
        )


def _distill(context: Context, decision: Decision) -> Decision:
    from compact.distill.run import distill  # imports torch, so only when it is needed

    options = context.options
    assert options.recover is not None
    text = texts_to_learn(options, default_calibration(context.source))
    student, _ = pruned_checkpoint(context.source, decision, context.cache, progress=context.progress)
    resolved = replace(context, options=replace(options, recover=replace(options.recover, text=text)))
    return Decision(*distill(resolved, decision.plan, student, updates=decision.updates))
