"""What every test runs under: no network, two threads, and the data folder where there is one."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# Before any test imports torch or transformers: both read these once. Child processes inherit them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "2")
# Threads of torch that wait for each other asleep: spinning, they slow each other down many times on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Started in the background (nohup, `&`), a process ignores these signals, and so would the children that tests signal.
for _name, _handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    _number = getattr(signal, _name, None)
    if _number is not None and signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

# No deadlines: a busy machine must not fail a test.
settings.register_profile("project", deadline=None)
settings.load_profile("project")

DATA_VARIABLE = "COMPACT_EDGE_DATA"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of tokenizers, texts and tasks that are too large, or under other licences, for the repository."""
    named = os.environ.get(DATA_VARIABLE)
    if not named:
        pytest.skip(f"{DATA_VARIABLE} is not set: this test needs the data folder (see CONTRIBUTING.md)")
    path = Path(named)
    if not path.is_dir():
        pytest.skip(f"{DATA_VARIABLE}={named} is not a folder")
    return path
