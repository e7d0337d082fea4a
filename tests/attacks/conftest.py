"""What several kinds of attack begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints import write_checkpoint


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint with nothing wrong in it."""
    return write_checkpoint(tmp_path / "m")
