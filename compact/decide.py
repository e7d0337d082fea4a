"""From a model and a user's options to a decision: the plan, and the tensors that it replaces, if it does.

`compact.prune.make_plan` chooses what stays. What comes before it (searching the sizes) and behind it (repairing and
training what stays) is strung together here, so that every command decides alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from compact.cache import Cache
from compact.calibration import Calibration
from compact.plan import PrunePlan
from compact.progress import SILENT, Progress
from compact.prune import PruneOptions, calibration_for, make_plan
from compact.repair import repair
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
    progress: Progress = SILENT,
) -> Decision:
    """Decide what stays and what it becomes.

    Args:
        source: the checked checkpoint.
        options: what the user asked for.
        cache: keeps every stage.
        calibration: drawn already, where the caller needs it too.
        progress: told of every stage.
    """
    if options.method == "repair" and calibration is None:
        calibration = calibration_for(source, options, cache=cache, progress=progress)
    plan = make_plan(source, options, cache, calibration=calibration, progress=progress)
    updates = None
    if options.method == "repair" and calibration is not None:
        plan, updates = repair(source, plan, calibration, options, cache, progress)
    return Decision(plan, updates)
