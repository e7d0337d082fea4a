"""From a model and a user's options to a decision: the plan, and the tensors that it replaces, if it does.

`compact.prune.make_plan` chooses what stays. What comes before it (searching the sizes) and behind it (repairing and
training what stays) is strung together here, so that every command decides alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from compact.budget_options import check_budget, is_searched
from compact.cache import Cache
from compact.calibration import Calibration
from compact.plan import PrunePlan
from compact.progress import SILENT, Progress
from compact.prune import PruneOptions, calibration_for, make_plan, rank_vocabulary
from compact.search import SizeOf, find_sizes
from compact.source import ModelSource


@dataclass(frozen=True)
class Decision:
    """What `compact.prune.prune` applies.

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
    if options.fit_bytes is None and not is_searched(options):
        return Decision(make_plan(source, options, cache, calibration=calibration, progress=progress))
    calibration = calibration or calibration_for(source, options, cache=cache, progress=progress)
    ranking = rank_vocabulary(source, options)
    found = find_sizes(source, options, ranking, calibration, cache, size_of=size_of, progress=progress)
    plan = make_plan(source, options, cache, calibration=calibration, sizes=found.sizes, progress=progress)
    return Decision(replace(plan, search=found.record))
