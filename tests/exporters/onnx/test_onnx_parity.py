"""The parity gate of ONNX folders: what passes, and every kind of wrong folder that must not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from compact.base.errors import GateError, OperatorMissingError, ToolUnavailableError
from compact.vocabulary.tokenizer import write_pruned_tokenizer
from exporters.gate import Check, ParityReport, reference_for
from exporters.llamacpp.engine import Generation
from exporters.onnx import parity as onnx_parity
from exporters.onnx.genai_engine import GenaiEngine
from exporters.onnx.ort_engine import OnnxEngine
from exporters.onnx.parity import check_onnx_artifact, check_onnx_tokenizer, onnx_mean_kl, render_chat
from tests.checkpoints import CHAT_TEMPLATE, TEXTS, copy_checkpoint, train_tokenizer, write_checkpoint
from tests.exporters.small_onnx import copy_of, edit_json

CALIBRATION = ["\n".join(TEXTS), "".join(reversed(TEXTS))]


def gate(checkpoint: Path, folder: Path, quant: str, **options: Any) -> ParityReport:
    return check_onnx_artifact(
        checkpoint, folder, quant, CALIBRATION, **{"unpruned": None, "baseline_kl": None, **options}
    )


def failed(report: ParityReport) -> list[str]:
    return [check.name for check in report.checks if check.passed is False]


def named(report: ParityReport, name: str) -> Check:
    return next(check for check in report.checks if check.name == name)


@pytest.fixture(scope="module")
def baseline(onnx_checkpoint: Path, onnx_int4: Path) -> float:
    with OnnxEngine(onnx_int4) as engine:
        return onnx_mean_kl(reference_for(onnx_checkpoint, CALIBRATION, greedy=False), engine)


def test_a_right_fp32_folder_passes(onnx_checkpoint: Path, onnx_fp32: Path) -> None:
    report = gate(onnx_checkpoint, onnx_fp32, "fp32")
    assert [check.name for check in report.checks] == ["graph", "tokenizer", "logits", "greedy", "chat"]
    assert all(check.passed for check in report.checks), report
    assert not report.partial
    logits = named(report, "logits").figures
    assert (logits["positions"], logits["one_at_a_time"]) == (256, 32)
    assert logits["max_abs_difference"] < 1e-4
    assert "2 conversations" in named(report, "chat").detail and "tokens generated" in named(report, "chat").detail
    report.require()
    assert ParityReport.from_dict(json.loads(json.dumps(report.as_dict()))) == report


def test_a_right_int4_folder_is_judged_by_the_baseline(onnx_checkpoint: Path, onnx_int4: Path, baseline: float) -> None:
    report = gate(onnx_checkpoint, onnx_int4, "int4", unpruned=onnx_checkpoint, baseline_kl=baseline)
    assert [check.name for check in report.checks] == ["graph", "tokenizer", "kl", "chat"]
    assert all(check.passed for check in report.checks), report
    assert named(report, "kl").figures["mean_kl"] == named(report, "kl").figures["baseline_mean_kl"] > 0


def test_a_folder_for_another_device_is_checked_in_part(onnx_checkpoint: Path, onnx_cuda: Path) -> None:
    report = gate(onnx_checkpoint, onnx_cuda, "fp16")
    assert report.partial and report.passed and report.why_partial
    assert [check.name for check in report.checks] == ["graph", "tokenizer", "kl", "chat"]
    assert named(report, "kl").passed is None  # reported: no baseline


# Each damage takes a copy of the folder.


def scale_data(name: str, factor: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
        tensor = next(tensor for tensor in model.graph.initializer if name in tensor.name)
        entries = {entry.key: int(entry.value) for entry in tensor.external_data if entry.key != "location"}
        kind = np.float32 if tensor.data_type == onnx.TensorProto.FLOAT else np.uint8
        count = entries["length"] // np.dtype(kind).itemsize
        data = np.memmap(folder / "model.onnx.data", kind, "r+", entries["offset"], (count,))
        data[:] = data * factor if kind is np.float32 else data[::-1].copy()
        data.flush()

    return damage


def swap_tokens(first: str, second: str) -> Callable[[Path], None]:
    def change(document: dict[str, Any]) -> None:
        vocab = document["model"]["vocab"]
        vocab[first], vocab[second] = vocab[second], vocab[first]

    return lambda folder: edit_json(folder / "tokenizer.json", change)


def drop_a_merge(folder: Path) -> None:
    edit_json(folder / "tokenizer.json", lambda document: document["model"]["merges"].pop(2))


def unseen_change(folder: Path) -> None:
    """A special token whose text is in none of the texts."""
    added = {"id": 0, "content": "<|never|>", "single_word": False, "lstrip": False, "rstrip": False}
    entry = {**added, "normalized": False, "special": True}
    edit_json(folder / "tokenizer.json", lambda document: document["added_tokens"].append(entry))


def other_template(folder: Path) -> None:
    template = CHAT_TEMPLATE.replace("<|im_end|>", "<|im_end|> ")
    edit_json(folder / "tokenizer_config.json", lambda config: config.update(chat_template=template))


def unknown_operator(folder: Path) -> None:
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    model.graph.node[3].op_type = "NoSuchOperator"
    (folder / "model.onnx").write_bytes(model.SerializeToString())


DAMAGES: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "weights": (scale_data("layers.1.mlp.down_proj", 1.01), "fp32", "logits"),
    "norm": (scale_data("final_norm", 1.001), "fp32", "logits"),
    "quantised weights": (scale_data("layers.1.mlp.down_proj", 0), "int4", "kl"),
    "two tokens exchanged": (swap_tokens("a", "b"), "fp32", "tokenizer"),
    "a merge missing": (drop_a_merge, "fp32", "tokenizer"),
    "a token too many": (unseen_change, "fp32", "tokenizer"),
    "another template": (other_template, "fp32", "chat"),
    "unknown operator": (unknown_operator, "fp32", "graph"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_wrong_folder_fails(
    onnx_checkpoint: Path, onnx_fp32: Path, onnx_int4: Path, tmp_path: Path, baseline: float, name: str
) -> None:
    damage, quant, check = DAMAGES[name]
    folder = copy_of({"fp32": onnx_fp32, "int4": onnx_int4}[quant], tmp_path / "folder")
    damage(folder)
    # The unpruned pair agrees with itself, so it excuses nothing.
    report = gate(onnx_checkpoint, folder, quant, unpruned=onnx_checkpoint, baseline_kl=baseline)
    assert failed(report)[0] == check, report
    with pytest.raises(GateError, match=f"parity gate failed, {check}"):
        report.require()


# The rest needs no model: the tokenizer's files beside a genai_config.json.


def vocabulary(checkpoint: Path, artifact: Path, out: Path) -> Path:
    """A folder with another checkpoint's tokenizer."""
    shutil.copytree(artifact, out, ignore=shutil.ignore_patterns("model.onnx*"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(checkpoint / name, out / name)
    return out


def test_what_genai_reads_otherwise_is_counted_and_not_failed(
    tmp_path: Path, onnx_fp32: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_parity, "probe_texts", lambda _specials: ["<|im_end|>", TEXTS[0] * 3, TEXTS[2]])
    source = write_checkpoint(tmp_path / "source", tokenizer=train_tokenizer("smollm"))
    pruned = tmp_path / "pruned"
    pruned.mkdir()
    write_pruned_tokenizer(source, pruned, [*range(380), 420])
    shutil.copyfile(source / "config.json", pruned / "config.json")
    folder = vocabulary(pruned, onnx_fp32, tmp_path / "folder")
    # genai cuts a text at NUL, and has no `Digits`: these stay with the space before them.
    texts = ["nul\0inside", "a 12", "plain"]
    check = check_onnx_tokenizer(pruned, folder, texts, unpruned=source)
    assert check.passed, check
    assert check.figures["runtime_own"] == 2 and check.figures["different"] == 0
    assert "2 differ for the unpruned model too, onnxruntime-genai's own difference" in check.detail
    # An unpruned model is held against its own files.
    alone = check_onnx_tokenizer(source, vocabulary(source, onnx_fp32, tmp_path / "alone"), texts, unpruned=None)
    assert (alone.passed, alone.figures["runtime_own"]) == (True, 2)
    assert "2 differ with the same tokenizer.json" in alone.detail and "unpruned" not in alone.detail
    # The source excuses what it shows itself and nothing else.
    drop_a_merge(folder)
    assert check_onnx_tokenizer(pruned, folder, texts, unpruned=source).passed is False
    # A tokenizer that genai reads otherwise nearly everywhere is not known to it.
    check = check_onnx_tokenizer(
        pruned, vocabulary(pruned, onnx_fp32, tmp_path / "again"), [texts[0] * 99], unpruned=source
    )
    assert check.passed is False and "does not know this tokenizer" in check.detail


def with_template(checkpoint: Path, out: Path, template: str) -> Path:
    copy_checkpoint(checkpoint, out)
    edit_json(out / "tokenizer_config.json", lambda config: config.update(chat_template=template))
    return out


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}\n{% if true %}\n{{ m['content'] }}\n{% endif %}\n{% endfor %}",
        "{{ messages[0].content.upper() }}",
    ],
)
def test_a_template_that_genai_renders_otherwise_is_reported_and_not_failed(
    onnx_checkpoint: Path, onnx_fp32: Path, tmp_path: Path, template: str
) -> None:
    checkpoint = with_template(onnx_checkpoint, tmp_path / "checkpoint", template)
    folder = copy_of(onnx_fp32, tmp_path / "folder")
    shutil.copyfile(checkpoint / "tokenizer_config.json", folder / "tokenizer_config.json")
    report = gate(checkpoint, folder, "fp32", unpruned=checkpoint)
    for chat in (named(report, "chat"), *render_chat(checkpoint, folder, None).checks()):
        assert chat.passed is None and chat.figures["runtime_own"] is True
        assert "onnxruntime-genai's own difference" in chat.detail
    assert "unpruned too" in named(report, "chat").detail and "unpruned" not in chat.detail
    assert report.passed and "tokens generated" in named(report, "chat").detail
    # Another template of the source excuses nothing.
    (chat,) = render_chat(checkpoint, folder, onnx_checkpoint).checks()
    assert chat.passed is False


def test_a_model_without_a_template_has_no_chat_check(onnx_checkpoint: Path, onnx_fp32: Path, tmp_path: Path) -> None:
    checkpoint = copy_checkpoint(onnx_checkpoint, tmp_path / "checkpoint")
    edit_json(checkpoint / "tokenizer_config.json", lambda config: config.pop("chat_template"))
    assert render_chat(checkpoint, onnx_fp32, None).checks() == []
    refusing = with_template(onnx_checkpoint, tmp_path / "refusing", "{{ raise_exception('no') }}")
    assert render_chat(refusing, onnx_fp32, None).checks() == []


def test_genai_runs_a_model_without_a_template_too(
    onnx_checkpoint: Path, onnx_fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = copy_checkpoint(onnx_checkpoint, tmp_path / "checkpoint")
    folder = copy_of(onnx_fp32, tmp_path / "folder")
    for path in (checkpoint, folder):
        edit_json(path / "tokenizer_config.json", lambda config: config.pop("chat_template"))
    report = gate(checkpoint, folder, "fp32")
    assert [check.name for check in report.checks] == ["graph", "tokenizer", "logits", "greedy", "generation"]
    assert report.passed and "by 32 tokens" in named(report, "generation").detail
    # A model that genai runs otherwise than onnxruntime does not pass.
    real = GenaiEngine.generate

    def other(engine: GenaiEngine, ids: Any, tokens: int) -> Generation:
        made = real(engine, ids, tokens)
        return Generation([(token + 1) % engine.n_vocab for token in made.ids], made.gaps)

    monkeypatch.setattr(GenaiEngine, "generate", other)
    assert failed(gate(checkpoint, folder, "fp32")) == ["generation"]
    assert failed(gate(onnx_checkpoint, onnx_fp32, "fp32")) == ["chat"]


def test_a_model_that_does_not_fit_is_checked_in_part(
    onnx_checkpoint: Path, onnx_fp32: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporters.onnx.parity.fits_in_memory", lambda *_: False)
    report = gate(onnx_checkpoint, onnx_fp32, "fp32")
    assert report.partial and report.passed and report.why_partial
    assert [check.name for check in report.checks] == ["graph", "tokenizer", "chat"]


def test_a_graph_that_the_cpu_lacks_operators_for(
    onnx_checkpoint: Path, onnx_fp32: Path, onnx_cuda: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OperatorMissingError("onnxruntime's CPU provider cannot run this model")

    monkeypatch.setattr(onnx_parity, "OnnxEngine", refuse)
    report = gate(onnx_checkpoint, onnx_cuda, "fp16")
    assert report.partial and [check.name for check in report.checks] == ["graph", "tokenizer", "chat"]
    with pytest.raises(ToolUnavailableError):
        gate(onnx_checkpoint, onnx_fp32, "fp32")
