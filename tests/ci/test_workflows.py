"""The rules that every workflow and action keeps."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.ci.expressions import evaluate, fill, is_true
from tests.ci.workflows import ACTION, BENCH, CI, FILES, IGNORED, NOT_RUN, RELEASE, ROOT, RUN, Step, every_step, read

STEPS = every_step()
WORKFLOWS = (RELEASE, CI)
_PINNED = re.compile(r"uses: [\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")


def label(step: Step) -> str:
    return "-".join(filter(None, (Path(step.file).stem, step.job, step.name or step.value.get("uses", ""))))


def test_every_file_of_github_is_known_here() -> None:
    found = {path.relative_to(ROOT).as_posix() for path in (ROOT / ".github").rglob("*.y*ml")}
    settings = {".github/actionlint.yaml", ".github/dependabot.yml"}
    assert found - settings | {ACTION} == set(FILES)


@pytest.mark.parametrize("step", STEPS, ids=label)
def test_a_step_is_run_by_a_test_or_says_why_not(step: Step) -> None:
    if "run" in step.value:
        assert step.name, f"{step.file}: a step without a name: {step.value['run']}"
        assert (step.key in RUN) != (step.key in NOT_RUN), f"{step.key}: list it in tests/ci/workflows.py, once"
    else:
        name = step.value["uses"].partition("@")[0]
        artifacts = ("actions/upload-artifact", "actions/download-artifact")
        assert name in IGNORED or name in artifacts or (ROOT / name / "action.yml").is_file()


def test_the_lists_name_only_steps_that_are_there() -> None:
    assert RUN | set(NOT_RUN) == {step.key for step in STEPS if "run" in step.value}


@pytest.mark.parametrize("step", STEPS, ids=label)
def test_no_expression_stands_in_a_script(step: Step) -> None:
    assert "${{" not in step.value.get("run", "")


@pytest.mark.parametrize("file", FILES)
def test_actions_of_others_are_pinned_to_a_commit_that_names_its_version(file: str) -> None:
    lines = [line.strip().removeprefix("- ") for line in (ROOT / file).read_text("utf-8").splitlines()]
    uses = [line for line in lines if line.startswith("uses: ") and not line.startswith("uses: ./")]
    assert [line for line in uses if not _PINNED.fullmatch(line)] == []


def test_one_action_has_one_version_everywhere() -> None:
    names: dict[str, set[str]] = {}
    for step in STEPS:
        name, at, version = step.value.get("uses", "").partition("@")
        if at:
            names.setdefault(name, set()).add(version)
    assert {name: found for name, found in names.items() if len(found) > 1} == {}


@pytest.mark.parametrize("file", WORKFLOWS)
def test_a_job_has_a_time_limit_and_no_permission_that_it_does_not_need(file: str) -> None:
    workflow = read(file)
    assert workflow["defaults"]["run"] == {"shell": "bash"}
    assert "concurrency" in workflow
    assert workflow["permissions"] in ({}, {"contents": "read"})
    writing = {
        name: {scope for scope, access in body.get("permissions", {}).items() if access == "write"}
        for name, body in workflow["jobs"].items()
    }
    wanted = {"attest": {"id-token", "attestations"}, "publish": {"contents"}} if file == RELEASE else {}
    assert {name: scopes for name, scopes in writing.items() if scopes} == wanted
    for name, body in workflow["jobs"].items():
        assert 0 < body["timeout-minutes"] <= 360, name
        checkouts = [step for step in body["steps"] if step.get("uses", "").startswith("actions/checkout@")]
        assert all(step["with"]["persist-credentials"] is False for step in checkouts), name
        # Where a token can write, no code of the repository runs: what it made comes as an artifact.
        assert not (checkouts and writing[name]), name


def test_phones_are_measured_only_where_somebody_says_so() -> None:
    condition = read(RELEASE)["jobs"]["phone"]["if"]

    def runs(inputs: dict[str, Any], variables: dict[str, str]) -> bool:
        needs = {"matrix": {"outputs": {"bench": "true"}}}
        return is_true(condition, {"inputs": inputs, "vars": variables, "needs": needs, "failed": False})

    assert not runs({}, {})
    assert not runs({"phones": False}, {"COMPACT_EDGE_PHONES": "false"})
    assert runs({"phones": True}, {})
    assert runs({}, {"COMPACT_EDGE_PHONES": "true"})


def test_files_are_attached_on_a_tag_or_by_a_word_only() -> None:
    condition = read(RELEASE)["jobs"]["publish"]["if"]

    def runs(ref: str, tag: str = "", gathered: str = "success", attested: str = "success") -> bool:
        needs = {"gather": {"result": gathered}, "attest": {"result": attested}}
        context = {"github": {"ref": ref}, "inputs": {"tag": tag}, "needs": needs, "failed": False}
        return is_true(condition, context)

    assert runs("refs/tags/v1")
    assert runs("refs/heads/main", tag="v1")
    assert runs("refs/tags/v1", attested="skipped")
    assert not runs("refs/heads/main")
    assert not runs("refs/tags/v1", gathered="failure")
    assert not runs("refs/tags/v1", attested="failure")


def test_the_action_installs_as_the_makefile_does() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    flags = re.search(r"^PIP = \$\(BIN\)/(.+)$", makefile, re.MULTILINE)
    assert flags is not None
    installed = re.findall(r"^\t\$\(PIP\) (.+)$", makefile, re.MULTILINE)
    torch, ours = (f"{flags.group(1)} {words}" for words in installed)
    script = next(step.value["run"] for step in STEPS if step.key == (ACTION, "", "Install"))
    first, second = script.splitlines()
    assert first == torch
    # Not editable, and with the extras that were asked for.
    assert second == re.sub(r"-e '\.\[.*\]'", '".[$EXTRAS]"', ours)
    known = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    asked = [read(ACTION)["inputs"]["extras"]["default"], *(s.value.get("with", {}).get("extras", "") for s in STEPS)]
    assert {extra for text in asked for extra in filter(None, text.split(","))} <= set(known)


def test_wheels_hold_nothing_of_one_runners_processor() -> None:
    portable = "-DGGML_NATIVE=OFF"
    assert read(ACTION)["inputs"]["cmake-args"]["default"] == portable
    assert read(CI)["env"]["CMAKE_ARGS"] == portable


def test_commands_of_the_makefile_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    scripts = [step.value["run"] for step in STEPS if step.file == CI and "run" in step.value]
    scripts.append((ROOT / ".ci" / "run").read_text("utf-8"))
    named = {target for script in scripts for target in re.findall(r"^\s*make (\w+)", script, re.MULTILINE)}
    assert named >= {"lint", "test", "env"}
    # The pages come with mkdocs.yml.
    wanted = named - (set() if (ROOT / "mkdocs.yml").exists() else {"docs"})
    assert [target for target in sorted(wanted) if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


def example(text: str) -> str:
    """The workflow of a model repository, as a comment or a page shows it."""
    lines = [line.removeprefix("#").rstrip() for line in text.splitlines()]
    start = next(number for number, line in enumerate(lines) if line.strip().startswith("on: {push"))
    indent = len(lines[start]) - len(lines[start].lstrip())
    end = next(
        n for n, line in enumerate(lines[start:], start) if not line.startswith(" " * indent) or not line.strip()
    )
    return "\n".join(line[indent:] for line in lines[start:end])


def test_a_model_repository_needs_ten_lines() -> None:
    shown = example((ROOT / ACTION).read_text("utf-8"))
    assert len(shown.splitlines()) <= 10
    page = (ROOT / "docs" / "ci.md").read_text("utf-8")
    assert shown in page
    steps = yaml.safe_load(shown)["jobs"]["compact"]["steps"]
    ours = next(step for step in steps if "/compact-edge@" in step["uses"])
    assert ours["with"].keys() <= read(ACTION)["inputs"].keys()
    assert steps[-1]["with"]["path"] == ours["with"]["out"]


def test_every_input_and_output_of_the_action_is_in_the_page() -> None:
    page = (ROOT / "docs" / "ci.md").read_text("utf-8")
    action = read(ACTION)
    assert [name for name in (*action["inputs"], *action["outputs"]) if f"`{name}`" not in page] == []


ACTIONLINT = Path(sys.executable).with_name("actionlint")
needs_actionlint = pytest.mark.skipif(not ACTIONLINT.is_file(), reason="actionlint is not installed (extra: dev)")


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    words = [
        sys.executable,
        str(root / ".ci" / "lint_workflows.py"),
        str(ACTIONLINT),
        "-shellcheck",
        "",
        "-pyflakes",
        "",
    ]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@needs_actionlint
def test_lint_finds_nothing() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout


@needs_actionlint
@pytest.mark.parametrize(
    ("file", "sound", "broken", "complaint"),
    [
        (RELEASE, "needs: [matrix, plan]", "needs: [matrix, plans]", "plans"),
        (ACTION, "BENCH: ${{ inputs.bench }}", "BENCH: ${{ inputs.bensh }}", "bensh"),
        (BENCH, "inputs.label", "inputs.lable", "lable"),
    ],
)
def test_lint_finds_what_is_wrong(tmp_path: Path, file: str, sound: str, broken: str, complaint: str) -> None:
    for name in (".github", ".ci"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / ACTION, tmp_path)
    (tmp_path / ".git").mkdir()  # how actionlint finds a project, and with it actionlint.yaml
    text = (tmp_path / file).read_text("utf-8")
    assert sound in text
    (tmp_path / file).write_text(text.replace(sound, broken, 1), "utf-8")
    done = lint(tmp_path)
    assert done.returncode != 0
    assert complaint in done.stdout


@needs_actionlint
def test_the_example_is_a_sound_workflow() -> None:
    shown = example((ROOT / ACTION).read_text("utf-8"))
    done = subprocess.run([str(ACTIONLINT), "-"], input=shown, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_expressions_are_read_as_github_reads_them() -> None:
    context = {
        "inputs": {"tag": "", "phones": True},
        "needs": {"a": {"outputs": {"x": '{"include": [1]}'}}},
        "failed": False,
    }
    assert evaluate("inputs.tag || 'main'", context) == "main"
    assert evaluate("inputs.phones && 'yes' || 'no'", context) == "yes"
    assert evaluate("!cancelled() && (inputs.tag != '' || inputs.phones == 'true')", context) is True
    assert fill("${{ fromJSON(needs.a.outputs.x) }}", context) == {"include": [1]}
    assert fill("on ${{ inputs.phones }}, ${{ needs.a.outputs.none }}", context) == "on true, "
    assert not is_true(None, {**context, "failed": True})
    assert is_true("${{ !cancelled() }}", {**context, "failed": True})
    assert not is_true("inputs.phones", {**context, "failed": True})
    with pytest.raises(ValueError, match="no such context"):
        evaluate("github.ref", context)
    with pytest.raises(ValueError, match="no such function"):
        evaluate("toJSON(inputs)", context)
