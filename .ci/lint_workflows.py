"""actionlint over every workflow, and over every composite action in the form of one.

actionlint reads the metadata of an action, and neither its scripts nor its expressions. So each action's steps are put
into a workflow that takes the action's inputs. Usage: lint_workflows.py ACTIONLINT [OPTION...]
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]


class _Dumper(yaml.SafeDumper):
    """Scripts stay blocks of lines, so that a message shows the line that it means."""


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def main(command: list[str]) -> int:
    workflows = sorted(map(str, (ROOT / ".github" / "workflows").glob("*.yml")))
    codes = [subprocess.run([*command, *workflows], cwd=ROOT, check=False).returncode]
    for path in (ROOT / "action.yml", *sorted((ROOT / ".github" / "actions").glob("*/action.yml"))):
        text = yaml.dump(
            as_workflow(yaml.safe_load(path.read_text("utf-8"))), Dumper=_Dumper, sort_keys=False, width=999
        )
        name = f"{path.relative_to(ROOT).as_posix()} (its steps as a workflow)"
        words = [*command, "-stdin-filename", name, "-"]
        codes.append(subprocess.run(words, input=text, text=True, cwd=ROOT, check=False).returncode)
    return max(codes)


def as_workflow(action: dict[str, Any]) -> dict[str, Any]:
    """A workflow of one job with the steps, inputs and outputs of a composite action."""
    inputs = {
        name: {"type": "string", "description": given["description"]}
        | ({"default": given["default"]} if "default" in given else {"required": True})
        for name, given in action["inputs"].items()
    }
    job: dict[str, Any] = {"runs-on": "ubuntu-latest", "steps": action["runs"]["steps"]}
    if "outputs" in action:
        job["outputs"] = {name: output["value"] for name, output in action["outputs"].items()}
    return {"on": {"workflow_call": {"inputs": inputs}}, "permissions": {}, "jobs": {"action": job}}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
