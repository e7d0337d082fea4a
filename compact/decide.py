"""From a model and a user's options to a decision: the plan, and the tensors that it replaces, if it does.

`compact.planning.make_plan` chooses what stays. What comes before it (searching the sizes) and behind it (repairing and
training what stays) is strung together here, so that every command decides alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from compact.apply import prune
from compact.budget import Sizes
from compact.budget_options import check_budget, is_searched
from compact.cache import Cache
from compact.calibration import Calibration
from compact.calibration_choice import calibration_for
from compact.calibration_scripts import default_calibration
from compact.errors import PlanMismatchError
from compact.plan import PLAN, UPDATES, PrunePlan, check_plan, read_plan
from compact.planning import make_plan
from compact.progress import SILENT, Progress
from compact.prune_options import PruneOptions
from compact.prune_texts import check_texts_to_learn, texts_to_learn
from compact.ranking import rank_vocabulary
from compact.repair import repair
from compact.search import SizeOf, find_sizes
from compact.sizes import sizes_of
from compact.source import ModelSource

# Raised when a pruned checkpoint's files change for an equal plan.
PRUNE_VERSION = 2


@dataclass(frozen=True)
class Decision:
    """What `compact.apply.prune` applies.

    Attributes:
        plan: what stays.
        updates: the `updates.safetensors` that the plan names, in the cache; None where it names none.
    """

    plan: PrunePlan
    updates: Path | None = None


def decide(
    source: ModelSource,
    options: PruneOptions,
    cache: Cache,
    *,
    calibration: Calibration | None = None,
    size_of: SizeOf | None = None,
    progress: Progress = SILENT,
) -> Decision:
    """Decide what stays and what it becomes.

    Args:
        source: the checked checkpoint.
        options: what the user asked for.
        cache: keeps every stage.
        calibration: drawn already, where the caller needs it too.
        size_of: bytes of the artifact at given sizes, for `options.fit_bytes`.
        progress: told of every stage.
    """
    check_budget(options)
    check_texts_to_learn(options, default_calibration(source))
    is_sized = options.fit_bytes is not None or is_searched(options)
    ranking = rank_vocabulary(source, options, cache, progress)
    sizes = None if is_sized else sizes_of(source, ranking, options)
    _warn_of_memory(source, sizes, options, progress)
    if calibration is None and (is_sized or options.method == "repair"):
        calibration = calibration_for(source, options, cache=cache, progress=progress)
    search = None
    if is_sized and calibration is not None:
        found = find_sizes(source, options, ranking, calibration, cache, size_of=size_of, progress=progress)
        sizes, search = found.sizes, found.record
        _warn_of_memory(source, sizes, options, progress)
    plan = make_plan(source, options, cache, calibration=calibration, ranking=ranking, sizes=sizes, progress=progress)
    plan = replace(plan, search=search)
    updates = None
    if options.method == "repair" and calibration is not None:
        plan, updates = repair(source, plan, calibration, options, cache, progress)
    decision = Decision(plan, updates)
    return decision if options.recover is None else _recover(source, decision, options, cache, progress)


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


def _warn_of_memory(source: ModelSource, sizes: Sizes | None, options: PruneOptions, progress: Progress) -> None:
    """Say as soon as the sizes are known what is refused much later; what is free then, or trained already, is not."""
    if options.recover is None or sizes is None:
        return
    from compact.recovery.distill import memory_of  # torch is loaded where something is trained

    needed, free = memory_of(source, sizes, options.recover, options.device, options.dtype)
    if needed > free:
        progress.note(
            f"warning: --recover distill will need about {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free"
        )


def _recover(
    source: ModelSource, decision: Decision, options: PruneOptions, cache: Cache, progress: Progress
) -> Decision:
    from compact.recovery.distill import recover  # torch is loaded where something is trained

    assert options.recover is not None
    text = texts_to_learn(options, default_calibration(source))
    student, _ = pruned_checkpoint(source, decision, cache, progress=progress)
    plan, updates = recover(
        source,
        decision.plan,
        student,
        replace(options.recover, text=text),
        cache,
        updates=decision.updates,
        device=options.device,
        dtype=options.dtype,
        seed=options.seed,
        progress=progress,
    )
    return Decision(plan, updates)
