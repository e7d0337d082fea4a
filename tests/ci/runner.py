"""Runs the steps of a job as GitHub would, in a clean copy of the repository.

`run:` scripts go through the shell that `shell: bash` stands for; artifacts are folders beside the jobs; what installs,
needs GitHub or another machine is left out (`workflows.NOT_RUN`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.ci.expressions import as_text, fill, is_true
from tests.ci.workflows import ACTION, IGNORED, NOT_RUN, ROOT, RUN, Step, read

# `shell: bash`.
SHELL = ("bash", "--noprofile", "--norc", "-eo", "pipefail")


@dataclass
class Ran:
    """What a job left: its folder, its outputs, the summary, and the step that failed."""

    folder: Path
    outputs: Mapping[str, str]
    summary: str
    ran: list[str]
    failed: str | None


@dataclass
class Machine:
    """A place for jobs: what a checkout holds, and the artifacts that jobs leave to each other."""

    root: Path
    cache: Path
    artifacts: Path = field(init=False)
    _jobs: int = 0

    def __post_init__(self) -> None:
        self.artifacts = self.root / "artifacts"
        self.artifacts.mkdir()
        programs = self.root / "programs"
        programs.mkdir()
        for name, words in (("compact-edge", "-P -m compact_edge"), ("python", "")):
            program = programs / name
            program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n', "utf-8")
            program.chmod(0o755)

    def checkout(self) -> Path:
        """A folder with what a clone would have of this working tree: nothing that git ignores."""
        self._jobs += 1
        folder = self.root / f"job-{self._jobs}"
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        for name in filter(None, listed.stdout.decode().split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        return folder

    def environment(self, folder: Path) -> dict[str, str]:
        """Of every step: no variable of a test or of a real runner but the ones that steps may count on."""
        kept = {name: os.environ[name] for name in ("HOME", "LANG", "OMP_NUM_THREADS") if name in os.environ}
        scratch = self.root / f"{folder.name}-temp"
        scratch.mkdir(exist_ok=True)
        return {
            **kept,
            "PATH": f"{self.root / 'programs'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(folder),
            "CI": "true",
            "GITHUB_ACTIONS": "true",
            "HF_HUB_OFFLINE": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "COMPACT_EDGE_CACHE": str(self.cache),
            "RUNNER_TEMP": str(scratch),
            "RUNNER_OS": "Linux",
            "RUNNER_ARCH": "X64",
        }


class Job:
    """One job while it runs."""

    def __init__(self, machine: Machine, workflow: str, job: str, context: Mapping[str, Any], folder: Path) -> None:
        self._machine = machine
        self._file = workflow
        self._name = job
        self._folder = folder
        self._environment = machine.environment(folder)
        self._summary = machine.root / f"{folder.name}-summary.md"
        self._summary.touch()
        runner = {"temp": self._environment["RUNNER_TEMP"], "os": "Linux", "arch": "X64", "name": "a runner"}
        github = {"workspace": str(folder), **context.get("github", {})}
        known = {name: context.get(name, {}) for name in ("inputs", "matrix", "needs", "vars", "secrets")}
        self._context: dict[str, Any] = {**known, "github": github, "runner": runner, "steps": {}, "failed": False}
        self._ran: list[str] = []
        self._failed: str | None = None

    def run_action(self, given: Mapping[str, Any]) -> Ran:
        """The action of this repository, as the only step of a job elsewhere."""
        outputs = self._composite("./", given)
        return Ran(self._folder, outputs, self._summary.read_text("utf-8"), self._ran, self._failed)

    def run(self, changes: Mapping[str, str]) -> Ran:
        """Every step. `changes` are variables that a test sets instead of the workflow's."""
        workflow = read(self._file)
        body = workflow["jobs"][self._name]
        for level in (workflow.get("env", {}), body.get("env", {}), changes):
            self._environment.update({key: as_text(fill(text, self._context)) for key, text in level.items()})
        if is_true(body.get("if"), self._context):
            self._steps(self._file, self._name, body["steps"], self._context)
        outputs = {name: as_text(fill(text, self._context)) for name, text in body.get("outputs", {}).items()}
        return Ran(self._folder, outputs, self._summary.read_text("utf-8"), self._ran, self._failed)

    def _steps(self, file: str, job: str, steps: list[dict[str, Any]], context: dict[str, Any]) -> None:
        for value in steps:
            step = Step(file, job, value)
            if not is_true(value.get("if"), context):
                continue
            outputs: Mapping[str, str] = {}
            if "uses" in value:
                outputs = self._use(value, context)
            elif step.key not in NOT_RUN:
                assert step.key in RUN, f"{step.key} is in neither list of tests/ci/workflows.py"
                outputs = self._shell(step, context)
            if "id" in value:
                context["steps"] = {**context["steps"], value["id"]: {"outputs": outputs}}

    def _shell(self, step: Step, context: dict[str, Any]) -> dict[str, str]:
        written = self._machine.root / "output"
        written.write_text("", "utf-8")
        script = self._machine.root / "script.sh"
        script.write_text(step.value["run"], "utf-8")
        own = {name: as_text(fill(text, context)) for name, text in step.value.get("env", {}).items()}
        place = self._folder / as_text(fill(step.value.get("working-directory", "."), context))
        done = subprocess.run(
            [*SHELL, str(script)],
            cwd=place,
            env={
                **self._environment,
                **own,
                "GITHUB_OUTPUT": str(written),
                "GITHUB_STEP_SUMMARY": str(self._summary),
            },
            stdin=subprocess.DEVNULL,
            check=False,
        )
        self._ran.append(step.name)
        if done.returncode != 0:
            self._failed = self._failed or f"{step.name}: exit code {done.returncode}"
            self._context["failed"] = context["failed"] = True
        lines = written.read_text("utf-8").splitlines()
        return dict(line.split("=", 1) for line in lines)

    def _use(self, value: Mapping[str, Any], context: dict[str, Any]) -> Mapping[str, str]:
        name = value["uses"].partition("@")[0]
        given = {key: fill(text, context) for key, text in value.get("with", {}).items()}
        if name.startswith("./"):
            return self._composite(name, given)
        if name == "actions/upload-artifact":
            self._upload(given)
        elif name == "actions/download-artifact":
            self._download(given)
        else:
            assert name in IGNORED, f"{name}: tests/ci knows nothing of this action"
        return {}

    def _composite(self, name: str, given: Mapping[str, Any]) -> Mapping[str, str]:
        file = ACTION if name == "./" else f"{name.removeprefix('./')}/action.yml"
        action = read(file)
        assert given.keys() <= action["inputs"].keys()
        inputs = {key: as_text(given.get(key, each.get("default"))) for key, each in action["inputs"].items()}
        github = {**self._context["github"], "action_path": str(self._folder / Path(file).parent)}
        context = {**self._context, "inputs": inputs, "github": github, "steps": {}}
        self._steps(file, "", action["runs"]["steps"], context)
        return {key: as_text(fill(each["value"], context)) for key, each in action.get("outputs", {}).items()}

    def _upload(self, given: Mapping[str, Any]) -> None:
        source = self._folder / given["path"]
        if not source.exists():
            assert given["if-no-files-found"] == "ignore", f"{given['path']}: nothing to upload"
            return
        shutil.copytree(source, self._machine.artifacts / given["name"])

    def _download(self, given: Mapping[str, Any]) -> None:
        target = self._folder / given["path"]
        found = sorted(self._machine.artifacts.glob(given.get("pattern") or given["name"]))
        assert found or "pattern" in given, f"{given['name']}: no such artifact"
        for artifact in found:
            flat = "name" in given or given.get("merge-multiple", False)
            shutil.copytree(artifact, target if flat else target / artifact.name, dirs_exist_ok=True)


def run_job(
    machine: Machine,
    workflow: str,
    job: str,
    *,
    changes: Mapping[str, str] | None = None,
    prepare: Mapping[str, str] | None = None,
    **context: Mapping[str, Any],
) -> Ran:
    """Run a job in a clean checkout.

    Args:
        machine: where.
        workflow: its file.
        job: its name in the file.
        changes: variables of the job that a test sets.
        prepare: files to write into the checkout first, by name.
        context: `inputs`, `matrix`, `needs`, `vars`, `github`.
    """
    folder = machine.checkout()
    for name, text in (prepare or {}).items():
        (folder / name).write_text(text, "utf-8")
    return Job(machine, workflow, job, context, folder).run(changes or {})


def run_action(machine: Machine, given: Mapping[str, Any]) -> Ran:
    """The action at the top of this repository with inputs `given`, in a clean checkout."""
    return Job(machine, "", "", {}, machine.checkout()).run_action(given)
