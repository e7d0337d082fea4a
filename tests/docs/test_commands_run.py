"""The commands of the documents, run as they are written, wherever they can run without a network, a device or hours.

What is large is played by something small of the same name: `smollm2-135m` and Llama-3.2-1B by random models (the real
smollm2-135m is built by tests/compact_edge/building/test_smollm2.py), Qwen2.5-0.5B by random weights behind its real
tokenizer, at the published widths of vocabulary and FFN. Budgets of calibration and measuring are the least that work.
"""

from __future__ import annotations

import glob
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from compact_edge.cli import main as cli
from tests.checkpoints import TEXTS, write_checkpoint
from tests.docs.documents import DOCUMENTS, ROOT, Command, blocks, commands, resolve

pytestmark = pytest.mark.slow

# Commands that are read by click and not run (test_commands.py), and what shows that they work.
NOT_RUN = (
    (r"\b(ssh|adb):", "needs a device: tests/runtime_bench, tests/devices"),
    (r"\btorchrun\b", "several processes: tests/compact/base/test_distributed.py"),
    (r"(?<![\w./-])(Qwen|HuggingFaceTB|meta-llama|org)/", "the Hub: tests/compact_edge/building/test_hub_build.py"),
    (r"\b(MODEL|DIR|NAME|SERIAL)\b|\.\.\.|my-model|model-int4", "a placeholder"),
    (r"\bengine build\b", "compiles for minutes: tests/runtime_bench/toolchain/test_engine_build.py"),
    (r"gemma-3-270m\.gguf", "a licensed model: tests/compact_edge/building/test_languages.py"),
    (r"--tasks\b", "an extra: tests/compact_edge/tasks/test_eval_tasks.py"),
    (
        r"--fit\b|--max-(memory|loss)\b|--min-speed\b|\bcurve\b",
        "minutes, and sizes of the real model: tests/compact_edge/building/test_fit.py",
    ),
    (r"--recover\b", "minutes: tests/compact_edge/building/test_recover_commands.py"),
    (r"onnx|-dml", "a minute each: tests/compact_edge/building/test_build_onnx.py"),
    (r"^compact-edge (release|gather)\b|\bverify \S*release\b", "minutes: tests/compact_edge/release/test_release.py"),
    (r"\bbench-pi\b", "needs a run on another device: tests/compact_edge/cli/test_report_command.py"),
)
# Added where the document does not give the option. Lines below each other may be alternatives with one output.
_LEAST = {
    "build": (
        *("--calibration-tokens=512", "--sequence-length=256", "--eval-text=evaluation.txt", "--threads=1"),
        "--force",
    ),
    "prune": ("--calibration-tokens=512", "--sequence-length=256"),
    "eval": ("--max-bytes=600", "--threads=1", "--window=256"),
    "bench": ("--repetitions=1", "--tokens=4", "--depths=16", "--threads=1", "--prompts=prompts.jsonl"),
}
# Qwen2.5-0.5B: config.json's widths of vocabulary and FFN, and ids.
_QWEN = {"intermediate_size": 4864, "bos_token_id": 151643, "eos_token_id": 151645}
_QWEN_ROWS = 151936

# Documents whose commands are run: those that need nothing, and those whose models have real tokenizers.
ALONE = ("docs/quickstart.md", "docs/targets.md")
WITH_DATA = ("README.md", "docs/guide-phone.md", "docs/guide-laptop.md")


def runs(command: Command) -> bool:
    return command.arguments is not None and not any(re.search(pattern, command.text) for pattern, _ in NOT_RUN)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for all documents: one cache, and the model that plays smollm2-135m."""
    from exporters.gguf_writer.write import write_gguf

    root = tmp_path_factory.mktemp("documents")
    model = write_checkpoint(root / "small", max_position_embeddings=4096)
    write_gguf(model, root / "SmolLM2-135M-Instruct.gguf", "F16")
    return root


@pytest.fixture
def desk(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A clean current folder with the texts that documents name."""
    monkeypatch.setenv("COMPACT_EDGE_CACHE", str(place / "cache"))
    monkeypatch.setattr("compact.sources.model_source._smollm2_file", lambda: place / "SmolLM2-135M-Instruct.gguf")
    monkeypatch.chdir(tmp_path)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS * 8)
    for name in ("my_app_texts.jsonl", "my_app.jsonl"):
        (tmp_path / name).write_text(lines, encoding="utf-8")
    for name in ("other_texts.txt", "evaluation.txt"):
        (tmp_path / name).write_text("\n".join(reversed(TEXTS)), encoding="utf-8")
    # A copy of the profile with another budget, as the guide to a phone says.
    profile = (ROOT / "targets" / "profiles" / "phone-arm64.toml").read_text(encoding="utf-8")
    changed, count = re.subn(r"(\[storage_budget_mib\]\nvalue = )\d+", r"\g<1>381", profile)
    assert count == 1
    (tmp_path / "my-phone.toml").write_text(changed, encoding="utf-8")
    prompt = {"name": "short", "text": "def area(r: float) -> float:"}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(prompt) + "\n", encoding="utf-8")
    yield tmp_path


def run_all(document: str) -> list[str]:
    """Run the commands of a document in order, in the current folder; returns the texts of those that ran."""
    done = []
    for command in commands(document):
        if not runs(command):
            continue
        arguments = [each for word in command.arguments or () for each in _expanded(word)]
        allowed = {0, 3} if "--fail-over-budget" in arguments else {0}  # a busy machine may miss a laptop's budget
        if command.text not in done:  # a page may show a command twice; its output is there already
            assert cli.run([*arguments, *_least(arguments)]) in allowed, command.text
        done.append(command.text)
    return done


def _expanded(word: str) -> list[str]:
    if "*" not in word:
        return [word]
    found = sorted(glob.glob(word))  # noqa: PTH207 as the shell does, with the words that a user sees
    assert found, f"{word} matches nothing"
    return found


def _least(arguments: Sequence[str]) -> list[str]:
    given = {word.split("=")[0] for word in arguments if word.startswith("--")}
    _, command, _ = resolve(arguments)
    return [option for option in _LEAST.get(command.name or "", ()) if option.split("=")[0] not in given]


def write_qwen(out: Path, data_dir: Path) -> None:
    """Random weights behind the real tokenizer, at the published widths of vocabulary and FFN."""
    folder = data_dir / "tokenizers" / "qwen2"
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    ids = [*document["model"]["vocab"].values(), *(token["id"] for token in document["added_tokens"])]
    shape: dict[str, Any] = {"tokenizer": document, "padding": _QWEN_ROWS - max(ids) - 1, **_QWEN}
    write_checkpoint(out, "qwen2", max_position_embeddings=8192, **shape)
    for file in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(folder / file, out / file)


@pytest.mark.parametrize("document", ALONE)
def test_pages_that_need_nothing(document: str, desk: Path) -> None:
    done = run_all(document)
    assert sum(text.split()[1] in ("build", "bench", "targets") for text in done) >= 2
    for text in done:
        named = re.search(r"--out ([\w-]+)", text)
        assert named is None or (desk / named[1]).is_dir(), text


def test_the_page_on_a_target_of_ones_own(desk: Path) -> None:
    (profile,) = blocks("docs/add-target.md", "toml")
    (desk / "my-board.toml").write_text(profile, encoding="utf-8")
    assert len(run_all("docs/add-target.md")) == 2
    manifest = json.loads((desk / "my-board" / "gguf" / "manifest.json").read_text(encoding="utf-8"))
    assert "my-board" in json.dumps(manifest)


def test_the_page_of_parameters(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(run_all("docs/size.md")) >= 4
    assert "phone-arm64" in capsys.readouterr().out
    assert (desk / "parameters.svg").is_file()


def test_the_page_on_pruning(desk: Path) -> None:
    """`tiny` itself: the words that its cut loses are kept by the next one."""
    assert len(run_all("docs/pruning.md")) == 3
    kept = json.loads((desk / "tiny-4096-kept" / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    words = (desk / "keep.txt").read_text(encoding="utf-8").splitlines()
    assert words and set(words) <= kept.keys()


@pytest.mark.parametrize("document", WITH_DATA)
def test_pages_with_published_models(document: str, desk: Path, data_dir: Path) -> None:
    if document != "docs/guide-laptop.md":
        write_qwen(desk / "Qwen2.5-0.5B-Instruct", data_dir)
    write_checkpoint(desk / "Llama-3.2-1B-Instruct", max_position_embeddings=8192)
    done = run_all(document)
    assert sum("compact-edge build" in text for text in done) >= 1
    assert list(desk.glob("*-compact/gguf/*.gguf"))


def test_no_command_is_left_out_silently() -> None:
    """Every command is run by a test above, or a rule says why not."""
    run_here = {*ALONE, *WITH_DATA, "docs/add-target.md", "docs/size.md", "docs/pruning.md"}
    shown = {command.text for document in run_here for command in commands(document) if runs(command)}
    left = [
        f"{document}: {command.text}"
        for document in DOCUMENTS
        if document not in run_here
        for command in commands(document)
        if runs(command) and command.text not in shown
    ]
    assert left == []
    every = [command.text for name in DOCUMENTS for command in commands(name)]
    used = {pattern for pattern, _ in NOT_RUN if any(re.search(pattern, text) for text in every)}
    assert used == {pattern for pattern, _ in NOT_RUN}, "a rule that no command needs any more"
