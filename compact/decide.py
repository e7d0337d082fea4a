"""From a model and a user's options to a decision: the plan, and the tensors that it replaces, if any.

`compact.pruning.planning.make_plan` chooses what stays. The search of the sizes comes before it; repair and training
come after it. This module calls them in order, so that every command decides alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from compact.base.cache import Cache
from compact.base.errors import PlanMismatchError
from compact.base.progress import SILENT, Progress
from compact.calibration.default_text import default_calibration
from compact.pruning.apply import prune
from compact.pruning.budget import Sizes
from compact.pruning.budget_options import check_budget, is_searched
from compact.pruning.calibration_choice import calibration_for
from compact.pruning.context import Context
from compact.pruning.methods import method_named
from compact.pruning.plan import PLAN, UPDATES, PrunePlan, check_plan, read_plan
from compact.pruning.planning import make_plan
from compact.pruning.ranking import rank_vocabulary
from compact.pruning.sizes import sizes_of
from compact.requested_texts import check_texts_to_learn, texts_to_learn
from compact.search.find import SizeOf, find_sizes
from compact.sources.model_source import ModelSource

# Raised when a pruned checkpoint's files change for an equal plan.
PRUNE_VERSION = 2


@dataclass(frozen=True)
class Decision:
    """What `compact.pruning.apply.prune` applies.

    Attributes:
        plan: what stays.
        updates: the `updates.safetensors` that the plan names, in the cache; None where it names none.
    """

    plan: PrunePlan
    updates: Path | None = None


def decide(context: Context, *, size_of: SizeOf | None = None) -> Decision:
    """Decide what stays and what it becomes.

    Args:
        context: the model, what the user asked for, and the cache that keeps every stage.
        size_of: bytes of the artifact at given sizes, for `options.fit_bytes`.

    Raises:
        UsageError, BudgetError: options that exclude each other, or a budget that is not reachable.
        CompactEdgeError: what the stages raise.
    """
    source, options = context.source, context.options
    check_budget(options)
    check_texts_to_learn(options, default_calibration(source))
    adapt = method_named(options.method).adapter
    search = None
    if options.fit_bytes is not None or is_searched(options):
        found = find_sizes(context, size_of=size_of)
        sizes, search = found.sizes, found.record
    else:
        sizes = sizes_of(source, context.once(rank_vocabulary), options)
    _warn_of_memory(context, sizes)
    decision = Decision(replace(make_plan(context, sizes), search=search))
    if adapt is not None:
        decision = Decision(*adapt(context, decision.plan, context.once(calibration_for)))
    return decision if options.recover is None else _distill(context, decision)


def read_decision(folder: Path, source: ModelSource) -> Decision:
    """A decision that was made before: `plan.json` in a folder, and its `updates.safetensors` where it names one.

    Raises:
        DamagedFileError: a broken plan.
        PlanMismatchError: it was made for other weights, or its updates are not there.
    """
    plan = read_plan(folder / PLAN)
    check_plan(plan, source)
    if plan.updates_sha256 is None:
        return Decision(plan)
    updates = folder / UPDATES
    if not updates.is_file():
        raise PlanMismatchError(f"{folder / PLAN}: names an {UPDATES}, and it is not there", f"put it beside {PLAN}")
    return Decision(plan, updates)


def pruned_checkpoint(
    source: ModelSource, decision: Decision, cache: Cache, *, progress: Progress = SILENT
) -> tuple[Path, str]:
    """The checkpoint that a decision makes, in the cache, and the id that it is known by there."""

    def make(work: Path) -> None:
        prune(source, decision.plan, work, updates=decision.updates, progress=progress)

    name = f"{decision.plan.id}-{PRUNE_VERSION}"
    return cache.get_or_make("pruned", name, make, needed_bytes=4 * source.n_params), name


def _warn_of_memory(context: Context, sizes: Sizes) -> None:
    """Say as soon as the sizes are known what is refused much later; what is free then, or trained already, is not."""
    options = context.options
    if options.recover is None:
        return
    from compact.distill.run import memory_of  # torch is loaded where something is trained

    needed, free = memory_of(context.source, sizes, options.recover, options.device, options.dtype)
    if needed > free:
        context.progress.note(
            f"warning: --recover distill will need about {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free"
        )


def _distill(context: Context, decision: Decision) -> Decision:
    from compact.distill.run import distill  # torch is loaded where something is trained

    options = context.options
    assert options.recover is not None
    text = texts_to_learn(options, default_calibration(context.source))
    student, _ = pruned_checkpoint(context.source, decision, context.cache, progress=context.progress)
    resolved = replace(context, options=replace(options, recover=replace(options.recover, text=text)))
    return Decision(*distill(resolved, decision.plan, student, updates=decision.updates))
