"""eval --tasks: a checkpoint, a GGUF and an ONNX folder answer as Transformers does, and what goes wrong is told."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from compact_edge.cli import main as cli
from compact_edge.cli.library_env import quiet_libraries
from compact_edge.tasks import evaluate as tasks
from compact_edge.tasks.checkpoint import CheckpointRuntime
from compact_edge.tasks.files import need_hub
from compact_edge.tasks.lm_eval_model import TaskModel
from exporters.gguf.tasks import GgufRuntime
from exporters.onnx.tasks import OnnxRuntime
from exporters.task_runtime import Runtime
from tests.checkpoints import TEXTS
from tests.compact_edge.small_tasks import QUESTIONS, write_tasks
from tests.exporters.onnx_graphs import without_child
from tests.exporters.small_onnx import lively_checkpoint
from tests.small_builds import command, run_child


@dataclass(frozen=True)
class Place:
    checkpoint: Path
    gguf: Path
    onnx: Path
    tasks: Path

    @property
    def models(self) -> tuple[Path, ...]:
        return (self.checkpoint, self.gguf, self.onnx)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    pytest.importorskip("lm_eval")
    root = tmp_path_factory.mktemp("eval-tasks")
    checkpoint = lively_checkpoint(root / "model")
    folder = root / "tasks"
    folder.mkdir()
    write_tasks(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPACT_EDGE_CACHE", str(root / "cache"))
        without_child(patch)
        export = ["export", str(checkpoint), "--no-check", "--out"]
        assert cli.run([*export, str(root / "gguf"), "--quant", "F32"]) == 0
        assert cli.run([*export, str(root / "onnx"), "--format", "onnx", "--quant", "fp32"]) == 0
        yield Place(checkpoint, next((root / "gguf").glob("*.gguf")), root / "onnx", folder)


class Reference:
    """Log-probabilities and greedy text by the plainest use of Transformers."""

    def __init__(self, checkpoint: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self.model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()

    def rows(self, ids: Sequence[int]) -> torch.Tensor:
        with torch.inference_mode():
            return self.model(input_ids=torch.tensor([list(ids)])).logits[0].double().log_softmax(dim=-1)

    def log_probability(self, context: str, continuation: str) -> tuple[float, bool]:
        if not context:
            ids = [self.tokenizer.bos_token_id, *self.tokenizer(continuation, add_special_tokens=False)["input_ids"]]
            begin = 1
        else:
            ids = self.tokenizer(context + continuation)["input_ids"]
            begin = len(self.tokenizer(context)["input_ids"])
        rows = self.rows(ids)
        assert len(ids) <= 257  # nothing is cut off
        wanted = range(begin, len(ids))
        total = sum(float(rows[i - 1, ids[i]]) for i in wanted)
        return total, all(int(rows[i - 1].argmax()) == ids[i] for i in wanted)

    def greedy(self, context: str, stops: Sequence[str], most: int) -> str:
        ids = self.tokenizer(context)["input_ids"]
        begin = len(ids)
        while len(ids) < begin + most:
            best = int(self.rows(ids)[-1].argmax())
            if best == self.tokenizer.eos_token_id:
                break
            ids.append(best)
        text: str = self.tokenizer.decode(ids[begin:], skip_special_tokens=True)
        for stop in stops:
            text = text.split(stop)[0]
        return text


@pytest.fixture(scope="module")
def reference(place: Place) -> Reference:
    return Reference(place.checkpoint)


def evaluate(capsys: pytest.CaptureFixture[str], place: Place, model: Path, names: str, *options: str) -> Any:
    capsys.readouterr()
    line = ["eval", str(model), "--tasks", names, "--include-path", str(place.tasks), "--threads", "1", "--json"]
    assert cli.run([*line, *options]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def refused(
    capsys: pytest.CaptureFixture[str], place: Place, line: Sequence[str], code: int, message: str, hint: str = ""
) -> None:
    capsys.readouterr()
    assert cli.run(["eval", str(place.checkpoint), *line]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    (said,) = [text for text in printed.err.splitlines() if text.startswith("error: ")]
    assert message in said
    assert hint in printed.err


@pytest.mark.parametrize("fewshot", [0, 2])
def test_every_runtime_gives_the_answers_of_transformers(
    place: Place, reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str], fewshot: int
) -> None:
    accuracies = []
    for index, model in enumerate(place.models):
        items = tmp_path / f"{index}.jsonl"
        options = ["--items", str(items), "--num-fewshot", str(fewshot), "--limit", "9"]
        result = evaluate(capsys, place, model, "small_choice,small_letters", *options)
        records = [json.loads(line) for line in items.read_text(encoding="utf-8").splitlines()]
        assert [record["task"] for record in records] == ["small_choice"] * 9 + ["small_letters"] * 9
        right = 0
        for record in records:
            answers = []
            for (context, continuation), ((value, greedy),) in zip(record["arguments"], record["resps"], strict=True):
                assert context.count("Answer:") == fewshot + 1
                expected, expected_greedy = reference.log_probability(context, continuation)
                assert value == pytest.approx(expected, abs=2e-3)
                assert greedy is expected_greedy
                answers.append(expected)
            right += record["task"] == "small_choice" and answers.index(max(answers)) == record["target"]
        task = result["tasks"]["small_choice"]
        assert (task["n_items"], task["num_fewshot"], task["version"]) == (9, fewshot, "3.0")
        accuracy = task["metrics"]["acc"]
        assert accuracy["value"] == pytest.approx(right / 9)
        assert accuracy["stderr"] == pytest.approx(math.sqrt(right / 9 * (1 - right / 9) / 8))
        assert accuracy["higher_is_better"] is True
        assert (result["limit"], result["num_fewshot"]) == (9, fewshot)
        accuracies.append(result["tasks"])
    assert accuracies[0] == accuracies[1] == accuracies[2]


def test_a_text_without_context_follows_bos(
    place: Place, reference: Reference, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = [reference.log_probability("", record["question"])[0] for record in QUESTIONS]
    perplexity = math.exp(-sum(expected) / len(expected))
    for model in place.models:
        result = evaluate(capsys, place, model, "small_words")["tasks"]["small_words"]
        assert result["metrics"]["perplexity"]["value"] == pytest.approx(perplexity, rel=1e-3)
        assert result["metrics"]["perplexity"]["stderr"] > 0
        assert result["metrics"]["perplexity"]["higher_is_better"] is False
        assert result["n_items"] == 12


def test_generation_is_greedy_and_ends_before_a_stop_string(
    place: Place, reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stops = ["e", "zzzz"]
    expected = [reference.greedy(record["question"], stops, 20) for record in QUESTIONS]
    unstopped = [reference.greedy(record["question"], [], 20) for record in QUESTIONS]
    assert expected != unstopped
    for index, model in enumerate(place.models):
        items = tmp_path / f"{index}.jsonl"
        evaluate(capsys, place, model, "small_written", "--items", str(items), "--batch-size", "4")
        records = [json.loads(line) for line in items.read_text(encoding="utf-8").splitlines()]
        assert [record["resps"][0][0] for record in records] == expected


def test_answers_hold_no_special_tokens(place: Place, reference: Reference) -> None:
    ids = reference.tokenizer("<|im_start|>naïve <tool> waves<|im_end|> and ice<|endoftext|>")["input_ids"]
    expected = reference.tokenizer.decode(ids, skip_special_tokens=True)
    assert expected == "naïve <tool> waves and ice"
    for runtime in runtimes(place):
        assert runtime.decode(ids) == expected, runtime.name


def runtimes(place: Place) -> Iterator[Runtime]:
    for make in (
        lambda: CheckpointRuntime(place.checkpoint, device="cpu", batch_size=3),
        lambda: GgufRuntime(place.gguf, threads=1, batch_size=3),
        lambda: OnnxRuntime(place.onnx, threads=1),
    ):
        runtime: Runtime = make()
        try:
            yield runtime
        finally:
            runtime.close()


def test_what_is_too_long_loses_its_beginning(place: Place, reference: Reference) -> None:
    text = " ".join(TEXTS * 2)[:600]
    ids = reference.tokenizer(text)["input_ids"]
    assert 300 < len(ids) < 500
    answer = " and then"
    whole = reference.tokenizer(text + answer)["input_ids"]
    kept = whole[-257:]  # 256 positions predict what follows them
    after = len(whole) - len(ids)
    rows = reference.rows(kept[:-1])
    expected = sum(float(rows[i - 1, kept[i]]) for i in range(257 - after, 257))
    # In windows: each token once, as long a context as fits before the last ones.
    first, rest = ids[:256], ids[256:]
    rows = reference.rows([reference.tokenizer.bos_token_id, *first[:-1]])
    rolling = sum(float(rows[i, token]) for i, token in enumerate(first))
    last = ids[-257:]
    rows = reference.rows(last[:-1])
    rolling += sum(float(rows[256 - len(rest) + i, token]) for i, token in enumerate(rest))
    for runtime in runtimes(place):
        model = TaskModel(runtime, batch_size=3)
        ((value, _),) = model.loglikelihood([SimpleNamespace(args=(text, answer))])
        assert value == pytest.approx(expected, abs=2e-3)
        (total,) = model.loglikelihood_rolling([SimpleNamespace(args=(text,))])
        assert total == pytest.approx(rolling, rel=1e-5)


def test_shared_beginnings_are_fed_once(place: Place) -> None:
    context = " ".join(TEXTS)[:300]
    requests = [SimpleNamespace(args=(context, f" {word} of ice")) for word in ("waves", "ships", "winters")]
    for runtime in runtimes(place):
        model = TaskModel(runtime, batch_size=3)
        together = model.loglikelihood(requests)
        shared, model.tokens_scored = model.tokens_scored, 0
        alone = [model.loglikelihood([request])[0] for request in requests]
        assert shared < model.tokens_scored / 2
        for (value, greedy), (expected, expected_greedy) in zip(together, alone, strict=True):
            assert value == pytest.approx(expected, abs=1e-3)
            assert greedy == expected_greedy


def test_a_group_has_a_row_of_its_own(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    result = evaluate(capsys, place, place.checkpoint, "small_group", "--limit", "4")["tasks"]
    assert set(result) == {"small_choice", "small_letters", "small_group"}
    mean = (result["small_choice"]["metrics"]["acc"]["value"] + result["small_letters"]["metrics"]["acc"]["value"]) / 2
    assert result["small_group"]["metrics"]["acc"]["value"] == pytest.approx(mean)
    assert result["small_group"]["n_items"] == 8
    line = ["eval", str(place.checkpoint), "--tasks", "small_group", "--include-path", str(place.tasks), "--limit", "4"]
    assert cli.run(line) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split("  ")[0] == "TASK"
    assert len(rows) == 1 and rows[0].startswith("small_group  acc") and "±" in rows[0]


@pytest.mark.slow
def test_only_results_reach_stdout_and_only_our_lines_stderr(place: Place) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TQDM", "DISABLE_"))}
    line = command("eval", str(place.gguf), "--tasks", "small_words,small_choice", "--include-path", str(place.tasks))
    done = run_child([*line, "--json", "--threads", "1"], environment)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == {"model", "runtime", "lm_eval", "limit", "num_fewshot", "tasks"}
    assert [text for text in done.stderr.splitlines() if not text.startswith("scoring answers: ")] == []


def test_what_is_refused(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    include = ["--include-path", str(place.tasks)]
    text = ["--text", str(place.tasks / "choice.yaml")]
    refused(capsys, place, [], 2, "give either --text or --tasks", "--help")
    refused(capsys, place, [*text, "--tasks", "small_choice"], 2, "give either --text or --tasks")
    refused(capsys, place, [*text, "--limit", "3"], 2, "--limit is for --tasks")
    refused(capsys, place, ["--tasks", "small_choice", *include, "--window", "32"], 2, "--window is for --text")
    refused(capsys, place, ["--tasks", ","], 2, "--tasks names no task")
    refused(capsys, place, ["--tasks", "x", "--include-path", str(tmp_path / "no")], 2, "folder does not exist")
    refused(capsys, place, ["--tasks", "small_sampled", *include], 2, "requires sampling")
    refused(
        capsys, place, ["--tasks", "small_endless", *include], 65, "256 new tokens, but the model has 256 positions"
    )
    refused(
        capsys,
        place,
        ["--tasks", "small_broken", *include],
        65,
        "small_broken cannot be read (RuntimeError: no data here)",
    )
    refused(capsys, place, ["--tasks", "small_hub", *include], 69, "small_hub: the dataset is not", "run once")
    there = tmp_path / "there.jsonl"
    there.write_text("mine", encoding="utf-8")
    refused(capsys, place, ["--tasks", "small_choice", *include, "--items", str(there)], 2, "already exists")
    nowhere = str(tmp_path / "no" / "items.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointRuntime, "score", lambda *_: pytest.fail("work was done"))
        refused(
            capsys, place, ["--tasks", "small_choice", *include, "--items", nowhere], 74, "its folder does not exist"
        )
    assert there.read_text(encoding="utf-8") == "mine"
    monkeypatch.setattr(tasks, "find_spec", lambda _: None)
    refused(capsys, place, ["--tasks", "small_choice"], 69, "lm_eval is not installed", "compact-edge[eval]")


def test_an_error_of_the_runtime_is_not_blamed_on_the_task(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte")

    monkeypatch.setattr(CheckpointRuntime, "score", fail)
    refused(capsys, place, ["--tasks", "small_choice", "--include-path", str(place.tasks)], 69, "not enough memory")


@pytest.mark.slow
def test_tiny_and_its_float32_gguf_agree_on_real_items(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval")
    assert cli.run(["export", "tiny", "--quant", "F32", "--out", str(tmp_path / "gguf"), "--no-check"]) == 0
    names = "local_piqa,local_arc_easy,local_winogrande,local_lambada_openai"
    line = ["--tasks", names, "--include-path", str(data_dir / "tasks"), "--limit", "6", "--threads", "1"]
    answers = []
    for number, model in enumerate(("tiny", str(next((tmp_path / "gguf").glob("*.gguf"))))):
        items = tmp_path / f"{number}.jsonl"
        assert cli.run(["eval", model, *line, "--items", str(items)]) == 0, capsys.readouterr().err
        answers.append([json.loads(text) for text in items.read_text(encoding="utf-8").splitlines()])
    assert len(answers[0]) == len(answers[1]) == 24
    for one, other in zip(*answers, strict=True):
        assert one["task"] == other["task"] and one["arguments"] == other["arguments"]
        for ((value, greedy),), ((expected, expected_greedy),) in zip(one["resps"], other["resps"], strict=True):
            assert value == pytest.approx(expected, abs=1e-2)
            assert greedy == expected_greedy


@pytest.mark.slow
def test_an_unknown_task_is_reported_with_near_names(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    # Slow: lm_eval reads all of its own task files to know their names.
    line = ["--tasks", "small_choice,arc_eazy", "--include-path", str(place.tasks)]
    refused(capsys, place, line, 2, "the task 'arc_eazy' does not exist", "arc_easy")


def test_the_network_is_for_tasks_of_the_hub(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("small_choice", "small_letters", "small_group", "small_written"):
        assert not need_hub([name], place.tasks)
    for names in (["hellaswag"], ["small_choice", "mmlu"], ["small_hub"]):
        assert need_hub(names, place.tasks)
    assert need_hub(["small_choice"], None)
    for hub in (False, True):
        monkeypatch.setenv("HF_HUB_OFFLINE", "")  # so that it is put back
        monkeypatch.delenv("HF_HUB_OFFLINE")
        quiet_libraries(tasks=True, hub=hub)
        assert os.environ.get("HF_HUB_OFFLINE") == (None if hub else "1")
