"""The model that the tests of a recovery share."""

from __future__ import annotations

import pytest

from compact.base.cache import Cache
from compact.sources.model_source import ModelSource, open_source


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("cache"), [], [])


@pytest.fixture(scope="module")
def source(cache: Cache) -> ModelSource:
    return open_source("tiny", cache)
