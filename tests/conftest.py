"""What every test runs under: no network, few threads, and the data folder where there is one."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# Before any test imports torch or transformers: both read these once. Child processes inherit them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if "PYTEST_XDIST_WORKER" in os.environ:
    # Each of several test processes has one core. The first process has set the variable for all of them.
    os.environ["OMP_NUM_THREADS"] = "1"
else:
    os.environ.setdefault("OMP_NUM_THREADS", "2")
# Threads of torch that wait for each other asleep: spinning, they slow each other down many times on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Started in the background (nohup, `&`), a process ignores these signals, and so would the children that tests signal.
for _name, _handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    _number = getattr(signal, _name, None)
    if _number is not None and signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

# Failed assertions of the helpers show their values, as those of the tests do.
_HERE = Path(__file__).parent
pytest.register_assert_rewrite(
    *(f"tests.{path.stem}" for path in _HERE.iterdir() if path.stem not in ("__init__", "__pycache__", "conftest"))
)

# No deadlines: a busy machine must not fail a test. Hypothesis's own number of examples is 100.
settings.register_profile("project", deadline=None, max_examples=60)
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


# Modules of 8 seconds or more without their slow tests, and of 20 seconds or more with them. They start first, so that
# no process is left alone with one of them at the end. A module that is missing here costs time only.
LONG_MODULES = (
    "compact_edge/building/test_smollm2.py",
    "docs/test_commands_run.py",
    "compact/distill/test_distill.py",
    "compact/repair/test_repair.py",
    "exporters/onnx/test_onnx_parity.py",
    "compact_edge/building/test_fit.py",
    "compact_edge/front/test_limits_command.py",
    "compact/search/test_predictor.py",
    "compact_edge/tasks/test_task_runtimes.py",
    "runtime_bench/transports/test_transports.py",
    "compact_edge/release/test_release.py",
    "exporters/onnx/test_onnx.py",
    "runtime_bench/toolchain/test_engine_build.py",
    "runtime_bench/transports/test_lost_links.py",
    "compact/calibration/test_hub_dataset.py",
    "compact_edge/building/test_build.py",
    "compact_edge/building/test_artifact_files.py",
    "compact_edge/building/test_languages.py",
    "compact_edge/tasks/test_eval_tasks.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests come last in their module. Long modules come first, and modules that only have long tests last."""
    place = {module: number for number, module in enumerate(dict.fromkeys(map(_module, items)))}
    place.update({f"tests/{module}": number - len(LONG_MODULES) for number, module in enumerate(LONG_MODULES)})
    quick = {_module(item) for item in items if not _is_slow(item)}
    items.sort(key=lambda item: (_module(item) not in quick, place[_module(item)], _is_slow(item)))


def _module(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def _is_slow(item: pytest.Item) -> bool:
    return item.get_closest_marker("slow") is not None
