"""A context makes what several stages need once, and makes it again under other options."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from compact.base.cache import Cache
from compact.pruning.context import Context
from compact.pruning.options import PruneOptions
from compact.pruning.planning import make_plan
from compact.pruning.ranking import rank_vocabulary
from compact.sources.model_source import open_directory
from tests.checkpoints import write_checkpoint


@pytest.fixture
def context(tmp_path: Path) -> Context:
    source = open_directory(write_checkpoint(tmp_path / "model"), name="m", origin="m")
    return Context(source, PruneOptions(vocab_size=320, method="magnitude"), Cache(tmp_path / "cache", [], []))


def test_a_value_is_made_once_and_made_again_under_other_options(context: Context) -> None:
    asked: list[int | None] = []

    def size(of: Context) -> int | None:
        asked.append(of.options.vocab_size)
        return of.options.vocab_size

    assert [context.once(size), context.once(size)] == [320, 320]
    assert replace(context, options=replace(context.options, vocab_size=300)).once(size) == 300
    assert asked == [320, 300]


def test_a_plan_uses_the_ranking_that_the_caller_gives(context: Context) -> None:
    ranking = context.once(rank_vocabulary)
    turned = replace(ranking, order=ranking.order[::-1])
    given = context.with_value(rank_vocabulary, turned)
    first = turned.order[0]
    assert first in make_plan(given).kept_token_ids
    assert first not in make_plan(context).kept_token_ids
    assert context.once(rank_vocabulary) is ranking
