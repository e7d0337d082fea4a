"""What the tests on (emulated) devices share: an engine for aarch64 and a small pruned model.

They compile llama.cpp, so plain `pytest` leaves them out; `make test-devices` runs them. The engine is kept in the
user's cache, so only the first run compiles.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from compact.base.cache import Cache, default_root
from runtime_bench.toolchain.engine_build import build_engine
from runtime_bench.toolchain.engine_flags import AARCH64, this_architecture
from runtime_bench.toolchain.engine_folder import EngineFolder
from tests.small_builds import command, run_child

VARIANT = "armv8.2-a+dotprod+fp16"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark everything here, and leave it out where `-m` does not ask for it by name (as with `-m "not slow"`)."""
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    for item in here:
        item.add_marker(pytest.mark.devices)
    if "devices" not in config.option.markexpr:
        config.hook.pytest_deselected(items=here)
        items[:] = [item for item in items if item not in here]


@pytest.fixture(scope="session")
def emulator() -> list[str]:
    """The words before a command for aarch64: qemu's, or none where this machine is one."""
    if this_architecture() == AARCH64:
        return []
    found = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if found is None:
        pytest.skip("qemu-aarch64 is not installed (Debian: apt install qemu-user)")
    return [found]


@pytest.fixture(scope="session")
def aarch64_engine() -> EngineFolder:
    """llama-server and llama-bench for aarch64, static."""
    for name in ("cmake", "c++" if this_architecture() == AARCH64 else "aarch64-linux-gnu-g++"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed (Debian: apt install cmake ninja-build g++-aarch64-linux-gnu)")
    return build_engine(AARCH64, VARIANT, cache=Cache(default_root(), [], []))


@pytest.fixture(scope="session")
def pruned_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny`, pruned, as GGUF with float32 weights."""
    out = tmp_path_factory.mktemp("tiny") / "out"
    words = ("build", "tiny", "--target", "gguf", "--quant", "F32", "--no-baseline", "--no-cache", "--threads", "1")
    done = run_child(command(*words, "--out", str(out)), os.environ)
    assert done.returncode == 0, done.stderr
    (path,) = out.rglob("*.gguf")
    return path
