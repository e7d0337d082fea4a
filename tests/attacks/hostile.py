"""What the attacks share: a user's run over a hostile model, and values of any JSON type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from compact.base.cache import Cache
from compact.base.files import publish
from compact.pruning.apply import prune
from compact.pruning.context import Context
from compact.pruning.options import PruneOptions
from compact.pruning.planning import make_plan
from compact.sources.model_source import open_source


def run(model: Path, scratch: Path) -> None:
    """What a user would do: open, plan, prune."""
    cache = Cache(scratch / "cache", [], [])
    source = open_source(str(model), cache)
    plan = make_plan(Context(source, PruneOptions(vocab_size=320, intermediate_size=32, method="magnitude"), cache))
    with publish(scratch / "out") as work:
        prune(source, plan, work)


def change(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, **values}), encoding="utf-8")


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["ids", "id", "type", "content", "a"]), inner, max_size=3)
    ),
    max_leaves=6,
)
