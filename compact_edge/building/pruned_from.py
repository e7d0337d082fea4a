"""Records in the user's cache which model a checkpoint was pruned from, so that `export` can compare with it.

The checkpoint does not contain the path of the model, because it may be published. Its plan.json has the sha256 of the
source.
"""

from __future__ import annotations

from pathlib import Path

from compact.base.cache import Cache
from compact.base.errors import CompactEdgeError
from compact.base.files import read_json_object, write_json
from compact.checkpoints.names import CONFIG
from compact.pruning.plan import PrunePlan
from compact.sources.hub import HubName, names_hub_model, parse_model
from compact.sources.model_source import ModelSource, open_source

_KIND, _FILE = "pruned-from", "source.json"


def remember(source: ModelSource, plan: PrunePlan, cache: Cache) -> None:
    """Record where the source of a plan is. With `torchrun`, every process must call this."""
    path = Path(source.origin).expanduser()
    origin = str(path.absolute()) if path.exists() else source.hub_reference or source.origin
    value = {"origin": origin, "pre": source.pre}
    cache.get_or_make(_KIND, plan.id, lambda work: write_json(work / _FILE, value), replace=True)


def recorded_source(plan: PrunePlan, cache: Cache) -> ModelSource | None:
    """Return the source of a plan, or None.

    It is None if this cache has no record of the plan, or if the model is not there any more or has changed.
    """
    found = cache.find(_KIND, plan.id)
    if found is None:
        return None
    try:
        value = read_json_object(found / _FILE)
        origin, pre = str(value.get("origin")), value.get("pre")
        if (named := names_hub_model(origin) and parse_model(origin)) and not _is_downloaded(named):
            return None
        source = open_source(origin, cache, pre=pre if isinstance(pre, str) else None)
    except CompactEdgeError:
        return None
    return source if source.id == plan.source_id else None


def _is_downloaded(model: HubName) -> bool:
    """Return whether the Hub's cache has the model. `export` must not download it."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(model.repo, CONFIG, revision=model.revision), str)
