"""A small random checkpoint of every row of the family table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from compact.architectures.table import family_of
from tests.checkpoints import write_checkpoint
from tests.family_models import CASE_NAMES, CASES, VARIANTS

every_case = pytest.mark.parametrize(("architecture", "variant"), CASES, ids=CASE_NAMES)


def checkpoint(out: Path, architecture: str, variant: str, dtype: torch.dtype = torch.bfloat16, **more: Any) -> Path:
    family = family_of({"architectures": [architecture]}, "here")
    return write_checkpoint(out, family.model_type, dtype=dtype, **VARIANTS[architecture][variant], **more)
