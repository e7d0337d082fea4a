"""The parity gate: what passes, and every kind of wrong file that must not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from compact.base.errors import DamagedFileError, GateError
from compact_edge.cli import main as cli
from exporters.gate import Check, ParityReport, Reference, check_float32, check_kl
from exporters.gguf import parity
from exporters.gguf.low_memory_checks import check_tensors
from exporters.gguf.parity import check_artifact
from exporters.gguf_writer.write import write_gguf
from exporters.llamacpp.engine import Generation
from tests.checkpoints import TEXTS, train_tokenizer, write_checkpoint

CALIBRATION = ["\n".join(TEXTS), "".join(reversed(TEXTS))]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("parity") / "llama")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("parity") / "qwen", "qwen2", pre="qwen2", padding=3)


def gate(checkpoint: Path, artifact: Path, quant: str, **options: Any) -> ParityReport:
    return check_artifact(
        checkpoint, artifact, quant, CALIBRATION, **{"unpruned": None, "baseline_kl": None, **options}
    )


def failed(report: ParityReport) -> list[str]:
    return [check.name for check in report.checks if check.passed is False]


@pytest.mark.parametrize("quant", ["F32", "F16", "BF16", "Q8_0"])
@pytest.mark.parametrize("family", ["llama", "qwen"])
def test_a_right_file_passes(request: pytest.FixtureRequest, tmp_path: Path, family: str, quant: Any) -> None:
    checkpoint: Path = request.getfixturevalue(family)
    write_gguf(checkpoint, tmp_path / "m.gguf", quant)
    report = gate(checkpoint, tmp_path / "m.gguf", quant, baseline_kl=0.001)
    assert report.passed
    assert not report.partial
    strict = quant == "F32"
    assert [check.name for check in report.checks] == [
        "tokenizer",
        "ends",
        "chat",
        "tensors",
        *(["logits", "greedy"] * strict or ["kl"]),
    ]
    assert all(check.passed for check in report.checks)
    report.require()
    assert ParityReport.from_dict(json.loads(json.dumps(report.as_dict()))) == report


# Each damage takes the file just written (F32) and the checkpoint, and makes the file wrong.


def tensors_of(path: Path) -> dict[str, gguf.ReaderTensor]:
    """The tensors of a GGUF; what is written into their `data` is written into the file."""
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path, "r+").tensors}


def not_permuted(path: Path, checkpoint: Path) -> None:
    tensors = tensors_of(path)
    for name, heads in (("attn_q", 4), ("attn_k", 2)):
        data = tensors[f"blk.0.{name}.weight"].data
        data[:] = data.reshape(heads, len(data) // heads // 2, 2, -1).swapaxes(1, 2).reshape(data.shape)


def two_tensors_swapped(path: Path, checkpoint: Path) -> None:
    tensors = tensors_of(path)
    gate, up = tensors["blk.1.ffn_gate.weight"].data, tensors["blk.1.ffn_up.weight"].data
    kept = gate.copy()
    gate[:] = up
    up[:] = kept


def weights_damaged(path: Path, checkpoint: Path) -> None:
    data = tensors_of(path)["blk.1.ffn_down.weight"].data
    data[len(data) // 2 :] = 0.0


def norm_damaged(path: Path, checkpoint: Path) -> None:
    tensors_of(path)["output_norm.weight"].data[:] *= 1.01


def not_a_number(path: Path, checkpoint: Path) -> None:
    tensors_of(path)["token_embd.weight"].data[:] = np.nan


def with_tokenizer(change: Callable[[dict[str, Any]], None]) -> Callable[[Path, Path], None]:
    """The file of a checkpoint whose tokenizer.json is another one."""

    def damage(path: Path, checkpoint: Path) -> None:
        other = path.parent / "other-checkpoint"
        shutil.copytree(checkpoint, other)
        document = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
        change(document)
        (other / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
        path.unlink()
        write_gguf(other, path, "F32", pre="gpt-2")
        shutil.rmtree(other)

    return damage


def exchange_tokens(document: dict[str, Any]) -> None:
    vocab = document["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]


def drop_a_merge(document: dict[str, Any]) -> None:
    del document["model"]["merges"][2]


def wrong_pre(path: Path, checkpoint: Path) -> None:
    path.unlink()
    write_gguf(checkpoint, path, "F32", pre="llama-bpe")


DAMAGES: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "q and k not permuted": (not_permuted, "tensors"),
    "two tensors swapped": (two_tensors_swapped, "tensors"),
    "weights damaged": (weights_damaged, "tensors"),
    "norm damaged": (norm_damaged, "tensors"),
    "not a number": (not_a_number, "tensors"),
    "two tokens exchanged": (with_tokenizer(exchange_tokens), "tokenizer"),
    "a merge missing": (with_tokenizer(drop_a_merge), "tokenizer"),
    "wrong pre": (wrong_pre, "tokenizer"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_wrong_file_fails(tmp_path: Path, llama: Path, name: str) -> None:
    damage, check = DAMAGES[name]
    write_gguf(llama, tmp_path / "m.gguf", "F32")
    damage(tmp_path / "m.gguf", llama)
    # The unpruned pair agrees with itself, so it excuses nothing.
    report = gate(llama, tmp_path / "m.gguf", "F32", unpruned=llama)
    assert failed(report)[0] == check
    assert not report.passed
    with pytest.raises(GateError, match=f"parity gate failed, {check}") as caught:
        report.require()
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", ["q and k not permuted", "two tokens exchanged", "wrong pre"])
def test_the_command_publishes_no_wrong_file(
    tmp_path: Path, llama: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken_writer(checkpoint: Path, target: Path, quant: Any, **options: Any) -> None:
        write_gguf(checkpoint, target, quant, **options)
        DAMAGES[name][0](target, checkpoint)

    monkeypatch.setattr("exporters.gguf.artifact.write_gguf", broken_writer)
    monkeypatch.setenv("COMPACT_EDGE_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    assert cli.run(["export", str(llama), "--quant", "F32", "--out", str(out)]) == 3
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error:", "hint:"))]
    assert lines[0].startswith(f"error: parity gate failed, {DAMAGES[name][1]}: ")
    assert lines[1].startswith("hint: the artifact was not published")
    assert not out.exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_file_of_another_model_is_refused(tmp_path: Path, llama: Path) -> None:
    other = write_checkpoint(tmp_path / "other", num_hidden_layers=3)
    write_gguf(other, tmp_path / "m.gguf", "F32")
    check = check_tensors(llama, tmp_path / "m.gguf")
    assert check.passed is False
    assert "blk.2." in check.detail


def test_a_torn_file_is_damaged(tmp_path: Path, llama: Path) -> None:
    write_gguf(llama, tmp_path / "m.gguf", "F32")
    content = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(content[: len(content) // 2])
    with pytest.raises(DamagedFileError):
        gate(llama, tmp_path / "m.gguf", "F32")


DECOMPOSED = ["cafe\u0301 nai\u0308ve", "e\u0301", "plain text"]


def test_what_the_runtime_lacks_is_counted_and_not_failed(tmp_path: Path) -> None:
    normalizing = {**train_tokenizer("qwen2"), "normalizer": {"type": "NFC"}}  # llama.cpp has none
    qwen = write_checkpoint(tmp_path / "qwen", "qwen2", tokenizer=normalizing)
    write_gguf(qwen, tmp_path / "m.gguf", "F32")
    for unpruned in (qwen, None):
        check = parity.check_tokenizer(qwen, tmp_path / "m.gguf", DECOMPOSED, unpruned=unpruned)
        assert check.passed is True
        assert check.figures["runtime_own"] >= 2
        assert check.figures["different"] == 0
        assert "llama.cpp's own difference" in check.detail
    without = parity.check_tokenizer(qwen, tmp_path / "m.gguf", ["plain text"], unpruned=qwen)
    assert without.figures["runtime_own"] == check.figures["runtime_own"] - 2


def test_a_difference_of_the_unpruned_pair_is_the_runtimes_own(
    tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Stands for a runtime that reads some texts differently for a reason that no normalizer explains.
    monkeypatch.setattr(parity, "probe_texts", lambda _specials: ["plain", "12345678", "a 1234567 b"])
    write_gguf(llama, tmp_path / "m.gguf", "F32", pre="llama-bpe")
    strict = parity.check_tokenizer(llama, tmp_path / "m.gguf", [], unpruned=None)
    assert (strict.passed, strict.figures["different"]) == (False, 2)
    # A name that tokenizer.json does not confirm may be wrong for both models.
    named = parity.check_tokenizer(llama, tmp_path / "m.gguf", [], unpruned=llama, pre="llama-bpe")
    assert (named.passed, named.figures["different"]) == (False, 2)
    monkeypatch.setattr(parity, "_named_by_user", lambda *_: False)
    excused = parity.check_tokenizer(llama, tmp_path / "m.gguf", [], unpruned=llama, pre="llama-bpe")
    assert (excused.passed, excused.figures["different"], excused.figures["runtime_own"]) == (True, 0, 2)


@pytest.mark.parametrize("quant", ["F32", "Q8_0"])
def test_a_model_that_does_not_fit_is_checked_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quant: Any
) -> None:
    deep = write_checkpoint(tmp_path / "deep", num_hidden_layers=4)
    write_gguf(deep, tmp_path / "m.gguf", quant)
    monkeypatch.setattr("exporters.gguf.parity.fits_in_memory", lambda *_: False)
    report = gate(deep, tmp_path / "m.gguf", quant)
    assert report.partial
    assert report.passed
    assert [check.name for check in report.checks] == ["tokenizer", "ends", "chat", "tensors", "logits", "greedy"]
    assert report.as_dict()["partial"] is True
    data = tensors_of(tmp_path / "m.gguf")["blk.3.ffn_up.weight"].data  # beyond the two layers
    data[:] = data[::-1].copy()
    assert failed(gate(deep, tmp_path / "m.gguf", quant)) == ["tensors"]


class FakeEngine:
    """Answers as a runtime would that has `logits` and continues with `generation`."""

    def __init__(self, logits: np.ndarray[Any, Any], generation: Generation) -> None:
        self._logits, self._generation = logits, generation

    def logits(self, ids: Sequence[int]) -> np.ndarray[Any, Any]:
        return self._logits

    def generate(self, ids: Sequence[int], max_tokens: int) -> Generation:
        return self._generation


def greedy_check(ids: list[int], gaps: list[float], off: float = 0.0) -> dict[str, bool | None]:
    logits = np.zeros((4, 8), dtype=np.float32)
    reference = Reference([1, 2, 3, 4], logits, [5, 6, 7])
    engine: Any = FakeEngine(logits + np.float32(off), Generation(ids, gaps))
    return {check.name: check.passed for check in check_float32(reference, engine)}


def test_greedy_text_may_part_only_at_a_tie() -> None:
    assert greedy_check([5, 6, 7], [1.0, 1.0, 1.0]) == {"logits": True, "greedy": True}
    assert greedy_check([5, 0, 0], [1.0, 1e-4, 1.0]) == {"logits": True, "greedy": True}
    assert greedy_check([5, 0, 7], [1e-4, 0.1, 1e-4])["greedy"] is False  # a tie elsewhere excuses nothing
    assert greedy_check([5, 6], [1.0, 1.0])["greedy"] is False
    assert greedy_check([5, 6, 7], [1.0, 1.0, 1.0], off=0.002)["logits"] is False


def test_kl_is_judged_by_the_unpruned_model_at_the_same_type() -> None:
    assert check_kl(0.05, "Q4_0", 0.02).passed is True
    assert check_kl(0.07, "Q4_0", 0.02).passed is False
    assert check_kl(0.0019, "Q8_0", 1e-6).passed is True  # below the floor no ratio counts
    assert check_kl(0.02, "Q8_0", 1e-6).passed is False
    assert check_kl(9.0, "Q4_0", None).passed is None
    assert check_kl(float("nan"), "Q4_0", 0.1).passed is False
    assert check_kl(float("inf"), "Q4_0", None).passed is False


def test_only_a_failed_check_fails_the_report() -> None:
    reported = Check("kl", None, "no baseline")
    assert ParityReport((reported,)).passed
    report = ParityReport((reported, Check("tensors", False, "swapped")))
    assert not report.passed
    with pytest.raises(GateError, match="tensors: swapped"):
        report.require()


def test_tokenizers_of_several_pre_tokenizers_pass(tmp_path: Path) -> None:
    for pre in ("llama-bpe", "smollm"):
        checkpoint = write_checkpoint(tmp_path / pre, tokenizer=train_tokenizer(pre))
        write_gguf(checkpoint, tmp_path / f"{pre}.gguf", "F32", vocab_only=True)
        assert parity.check_tokenizer(checkpoint, tmp_path / f"{pre}.gguf", CALIBRATION, unpruned=None).passed
