"""The workflows and actions of this repository as data, and which of their steps a test runs as they are written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
RELEASE = ".github/workflows/release.yml"
CI = ".github/workflows/ci.yml"
ACTION = "action.yml"
BENCH = ".github/actions/bench/action.yml"
FILES = (RELEASE, CI, ACTION, BENCH)

# Steps that test_run_steps.py runs: (file, job or "", name).
RUN = frozenset(
    {
        (RELEASE, "matrix", "List"),
        (RELEASE, "plan", "Make the plan"),
        (RELEASE, "cell", "Make the cell"),
        (RELEASE, "gather", "Gather the cells"),
        (RELEASE, "gather", "Verify"),
        (RELEASE, "attest", "Check the sums"),
        (RELEASE, "publish", "Pack"),
        (ACTION, "", "Name the cache"),
        (ACTION, "", "Build"),
        (ACTION, "", "Verify"),
        (ACTION, "", "Measure"),
        (ACTION, "", "Report"),
        (BENCH, "", "Name the device"),
        (BENCH, "", "Measure each cell"),
    }
)
# Steps that it does not, and why.
INSTALLS = "installs or compiles for minutes; test_workflows.py holds it to the Makefile's own commands"
NOT_RUN: Mapping[tuple[str, str, str], str] = {
    (ACTION, "", "Make an environment"): INSTALLS,
    (ACTION, "", "Compile llama-cpp-python, unless the cache has it"): INSTALLS,
    (ACTION, "", "Install"): INSTALLS,
    (RELEASE, "bench", "Build the engine"): "compiles for minutes; .ci/run runs the same command",
    (RELEASE, "phone", "Build the engine for phones"): "compiles for minutes; make test-devices runs the same command",
    (RELEASE, "phone", "Find the phone"): "needs a phone on adb",
    (RELEASE, "publish", "Upload"): "needs GitHub's releases",
    (CI, "lint", "Lint"): "is what runs this test's own checks",
    (CI, "test", "Test"): "is what runs this test",
    (CI, "docs", "Documentation"): "make lint builds the same pages",
}
# Actions of others that do nothing in a test; artifacts are passed on by the test itself.
IGNORED = frozenset({"actions/checkout", "actions/setup-python", "actions/cache", "actions/attest-build-provenance"})


@dataclass(frozen=True)
class Step:
    """One step: the file, the job ("" in an action), and what it says."""

    file: str
    job: str
    value: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.value.get("name", ""))

    @property
    def key(self) -> tuple[str, str, str]:
        return self.file, self.job, self.name


@cache
def read(file: str) -> dict[str, Any]:
    """A workflow or an action. `on` is `True` where YAML 1.1 reads it so."""
    value: dict[str, Any] = yaml.load((ROOT / file).read_text("utf-8"), _LOADER)
    if True in value:
        value["on"] = value.pop(True)  # type: ignore[call-overload]
    return value


def steps(file: str) -> Iterator[Step]:
    """Every step of a file, in order."""
    value = read(file)
    if "runs" in value:
        yield from (Step(file, "", step) for step in value["runs"]["steps"])
        return
    for job, body in value["jobs"].items():
        yield from (Step(file, job, step) for step in body["steps"])


def every_step() -> list[Step]:
    return [step for file in FILES for step in steps(file)]
