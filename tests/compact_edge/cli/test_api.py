"""The functions of `compact_edge`: results of the commands' --json, keywords that are their flags, no heavy import."""

from __future__ import annotations

import doctest
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import compact_edge
from compact.base.cache import Cache
from compact.base.errors import EXIT_USAGE, OutputExistsError, UsageError
from compact.base.files import sha256_file
from compact.base.progress import SILENT
from compact_edge import build, evaluate, export, open_model, prune
from compact_edge.building.result import BuildResult
from compact_edge.cli import api
from tests.compact_edge.running import run_json
from tests.compact_edge.small_tasks import write_tasks
from tests.small_builds import ROOT, Workshop

# What another run of the same command measures or finds differently.
_OF_THE_RUN = ("out", "stages_reused")


class Recorder:
    """A `Progress` that keeps the notes and the names of the tasks."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def task(self, description: str, total: int | None, unit: str) -> Any:
        self.heard.append(description)
        return SILENT.task(description, total, unit)

    def note(self, text: str) -> None:
        self.heard.append(text)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    shop = Workshop(tmp_path_factory.mktemp("api"))
    with pytest.MonkeyPatch.context() as patch:
        shop.enter(patch)
        yield shop


@pytest.fixture(scope="module")
def built(shop: Workshop) -> BuildResult:
    """One build, whose cache the tests below share."""
    return build(
        shop.model,
        target="gguf",
        quant="Q8_0",
        out=shop.root / "built",
        threads=1,
        calibration=[shop.calibration],
        calibration_tokens=512,
        eval_text=str(shop.text),
        no_baseline=True,
        split="proportional",
    )


def without_run(result: dict[str, Any]) -> dict[str, Any]:
    """The result without the place and the speed of one run."""
    kept = {name: value for name, value in result.items() if name not in _OF_THE_RUN}
    for outcome in kept.get("formats", {}).values():
        del outcome["after"]["this_machine"]
    return kept


def test_build_gives_what_the_command_prints(
    shop: Workshop, built: BuildResult, capsys: pytest.CaptureFixture[str]
) -> None:
    assert capsys.readouterr().out == ""
    out = shop.root / "by-command"
    printed = run_json(capsys, *shop.build(out, "--no-baseline"))
    assert list(printed) == list(built.as_dict())
    assert without_run(printed) == without_run(built.as_dict())
    ours, theirs = built.artifacts["gguf"], out / "gguf" / printed["formats"]["gguf"]["artifact"]
    assert sha256_file(ours) == sha256_file(theirs)


def test_prune_and_export_give_what_the_commands_print(shop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--vocab-size", "300", "--calibration", str(shop.calibration), "--calibration-tokens", "512")
    pruned = prune(
        shop.model, vocab_size=300, calibration=str(shop.calibration), calibration_tokens=512, out=shop.root / "pruned"
    )
    printed = run_json(capsys, "prune", str(shop.model), *flags, "--out", str(shop.root / "pruned-by-command"))
    assert without_run(printed) == without_run(pruned.as_dict())
    assert sha256_file(pruned.out / "model.safetensors") == sha256_file(Path(printed["out"]) / "model.safetensors")

    exported = export(pruned.out, quant="Q8_0", no_check=True, out=str(shop.root / "exported"))
    again = ("--force", "--quant", "Q8_0", "--no-check", "--out", str(shop.root / "exported"))
    sha256 = sha256_file(exported.path)
    assert run_json(capsys, "export", str(pruned.out), *again) == exported.as_dict()
    assert sha256_file(exported.path) == sha256


def test_evaluate_gives_what_the_command_prints(
    shop: Workshop, built: BuildResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = built.artifacts["gguf"]
    scored = evaluate(artifact, text=shop.text, threads=1)
    line = ("eval", str(artifact), "--text", str(shop.text), "--threads", "1")
    assert run_json(capsys, *line) == scored.as_dict()
    assert 0 < scored.bits_per_byte < 20

    progress = Recorder()
    kept = tmp_path / "keep.txt"
    compared = evaluate(artifact, text=shop.text, against=shop.model, threads=1, save_tokens=kept, progress=progress)
    assert run_json(capsys, *line, "--against", str(shop.model)) == compared.as_dict()
    assert any(str(kept) in heard for heard in progress.heard)


def test_evaluate_scores_tasks(shop: Workshop, built: BuildResult, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lm_eval", reason="lm_eval is not installed (the extra `eval`)")
    folder = shop.root / "tasks"
    folder.mkdir()
    write_tasks(folder)
    artifact = built.artifacts["gguf"]
    result = evaluate(artifact, tasks="small_choice", include_path=folder, threads=1)
    line = ("eval", str(artifact), "--tasks", "small_choice", "--include-path", str(folder), "--threads", "1")
    assert run_json(capsys, *line) == result.as_dict()


def test_open_model_takes_a_cache_or_its_folder(shop: Workshop, tmp_path: Path) -> None:
    source = open_model(shop.model)
    assert source.directory == shop.model
    assert open_model(str(shop.model), cache=tmp_path).id == source.id
    assert open_model(shop.model, cache=Cache(tmp_path, [], [])).id == source.id


@pytest.mark.parametrize(
    ("function", "flags", "words"),
    [
        (build, {"targte": "gguf"}, "'targte'; did you mean target"),
        (build, {"target": "gguf", "json": True}, "'json'"),
        (prune, {"vocabsize": 8}, "did you mean vocab_size"),
        (export, {"Quant": "Q8_0"}, "did you mean quant"),
        (evaluate, {"texts": "a.txt"}, "did you mean text"),
    ],
)
def test_a_keyword_that_is_not_a_flag(function: Any, flags: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match="got an unexpected keyword argument") as caught:
        function("tiny", **flags)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("function", "flags", "message"),
    [
        (build, {}, "missing option '--target'"),
        (build, {"target": "gguf", "ratio": "much"}, "'--ratio': 'much'"),
        (build, {"target": "gguf", "ratio": [0.1, 0.2]}, "--ratio"),
        (build, {"target": "gguf", "no_check": "no"}, "--no-check"),
        (build, {"target": "gguf", "vocab_coverage": "120%"}, "--vocab-coverage"),
        (build, {"target": "gguf", "quant": "list"}, "--quant list"),
        (build, {"target": ["gguf", "gguf"]}, "gguf"),
        (prune, {"out": "x", "vocab_size": 12.5}, "'--vocab-size': '12.5'"),
        (prune, {"out": "x", "batch_size": True}, "--batch-size"),
        (prune, {"out": "x", "method": "magic"}, "--method"),
        (export, {}, "missing option '--out'"),
        (evaluate, {}, "either --text or --tasks"),
        (evaluate, {"text": "a.txt", "limit": 3}, "--limit is for --tasks"),
    ],
)
def test_a_bad_value_is_a_usage_error(function: Any, flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        function("tiny", **flags)
    assert message in caught.value.message
    assert caught.value.exit_code == EXIT_USAGE


def test_an_earlier_output_is_kept(built: BuildResult, shop: Workshop) -> None:
    with pytest.raises(OutputExistsError):
        build(shop.model, target="gguf", out=built.out)
    assert built.artifacts["gguf"].is_file()


def test_values_are_read_as_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers, texts and paths; several values in one text or in a list."""
    seen: list[Any] = []
    monkeypatch.setattr("compact_edge.building.pipeline.build", lambda options, _: seen.append(options))
    build(
        "tiny",
        target="gguf",
        intermediate_size=384,
        languages="en,de",
        calibration=Path("a.txt"),
        vocab_coverage="50%",
    )
    build(
        "tiny",
        target=("gguf",),
        intermediate_size="384",
        languages=["en", "de"],
        calibration=["a.txt"],
        vocab_coverage=0.5,
    )
    assert seen[0] == seen[1]
    asked = seen[0].prune
    assert (asked.intermediate_size, asked.languages, asked.calibration) == (384, ("en", "de"), ("a.txt",))
    assert asked.vocab_coverage == 0.5
    assert seen[0].check
    build("-odd-", target="gguf", no_check=True, force=False, prompt="--json", out=None)
    assert (seen[2].model, seen[2].check, seen[2].force, seen[2].prompt) == ("-odd-", False, False, "--json")


def test_importing_is_light() -> None:
    code = (
        "import sys, compact_edge; from compact_edge import build, evaluate, export, open_model, prune; "
        "print({'torch', 'transformers', 'numpy', 'rich'} & sys.modules.keys(), build.__class__.__name__); "
        "import os; print('HF_HUB_OFFLINE' in os.environ)"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.startswith("set() ") and done.stdout.endswith("False\n")


def test_the_functions_are_listed() -> None:
    assert compact_edge.build is api.build  # whatever was imported before
    assert {"build", "evaluate", "export", "open_model", "prune"} <= set(dir(compact_edge))
    with pytest.raises(AttributeError):
        compact_edge.bulid  # noqa: B018


@pytest.mark.slow
def test_the_examples_of_the_functions_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPACT_EDGE_CACHE", str(tmp_path / "cache"))
    result = doctest.testmod(api)
    assert result.attempted >= 10
    assert result.failed == 0
