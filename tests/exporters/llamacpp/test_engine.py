"""The engine against Transformers, and what happens when its process dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import psutil
import pytest
import torch

from compact.base.errors import (
    CompactEdgeError,
    DamagedFileError,
    EngineCrashedError,
    ModelNotFoundError,
    UnsupportedArchitectureError,
    UsageError,
)
from exporters.llamacpp.engine import LlamaEngine, kl_divergence, resident_bytes
from tests.exporters.small_gguf import TEXT, VOCAB, encode, random_gguf, reference_logits
from tests.processes import gone
from tests.small_builds import ROOT


def test_logits_and_scores_equal_transformers(small_checkpoint: Path, small_gguf_file: Path) -> None:
    ids = encode(small_checkpoint, TEXT)
    expected = reference_logits(small_checkpoint, ids)
    assert expected.std() > 0.5  # a model whose logits are all alike would prove nothing
    # A batch that does not divide the length: positions must go on across batches.
    with LlamaEngine(small_gguf_file, n_ctx=256, n_batch=7) as engine:
        logits = engine.logits(ids)
        again = engine.logits(ids)
        scores = engine.score(ids)
    assert logits.shape == expected.shape and logits.dtype == np.float32
    assert np.abs(logits - expected).max() < 1e-3
    assert np.array_equal(logits, again)  # the cache is emptied between calls
    log_softmax = torch.log_softmax(torch.tensor(expected, dtype=torch.float64), dim=-1).numpy()
    reference = log_softmax[np.arange(len(ids) - 1), ids[1:]]
    assert scores.dtype == np.float64
    assert np.abs(scores - reference).max() < 1e-3
    assert kl_divergence(expected, logits).max() < 1e-6
    assert kl_divergence(expected, expected[:, ::-1].copy()).min() > 0


def test_greedy_generation_is_the_argmax_of_transformers(small_checkpoint: Path, small_gguf_file: Path) -> None:
    prompt = encode(small_checkpoint, "The lighthouse")
    expected: list[int] = []
    gaps: list[float] = []
    for _ in range(6):
        row = reference_logits(small_checkpoint, prompt + expected)[-1]
        best = np.sort(row)[-2:]
        expected.append(int(row.argmax()))
        gaps.append(float(best[1] - best[0]))
    with LlamaEngine(small_gguf_file, n_ctx=64) as engine:
        free = engine.generate(prompt, 6)
        stopped = engine.generate(prompt, 6, stop={expected[2]})
    assert free.ids == expected
    assert np.allclose(free.gaps, gaps, atol=1e-3)
    first = expected.index(expected[2])
    assert stopped.ids == expected[: first + 1] and len(stopped.gaps) == first + 1


@pytest.fixture(scope="module")
def tokenizer_engine(small_gguf_file: Path) -> Iterator[LlamaEngine]:
    with LlamaEngine(small_gguf_file, vocab_only=True) as engine:
        yield engine


@pytest.mark.parametrize(
    "text",
    ["", " ", "a\0b", "\x01\x02\x7f", "naïve 漢字 🏝️", "<|user|>", TEXT, "\ufeffBOM", "tab\tand\r\nline", "x" * 5000],
)
def test_tokenize_equals_hugging_face(small_checkpoint: Path, tokenizer_engine: LlamaEngine, text: str) -> None:
    (ids,) = tokenizer_engine.tokenize([text], parse_special=True)
    assert ids == encode(small_checkpoint, text)
    assert tokenizer_engine.detokenize(ids) == text.encode()
    assert tokenizer_engine.detokenize(ids, special=False) == text.replace("<|user|>", "").encode()


def test_vocabulary_only(small_gguf_file: Path) -> None:
    with LlamaEngine(small_gguf_file, vocab_only=True) as engine:
        assert engine.n_vocab == VOCAB and not engine.add_bos and engine.eog == (0,)
        assert engine.metadata["general.architecture"] == "llama"
        assert engine.tokenize([], parse_special=False) == []
        plain, special = (engine.tokenize(["<|user|>"], parse_special=flag)[0] for flag in (False, True))
        assert special == [1] and len(plain) > 1
        # Bytes that are no text come through as they are, or as U+FFFD: never an error.
        broken, lone = engine.tokenize(["a\udcffb", "\ud800"], parse_special=False)
        assert broken and lone
        with pytest.raises(UsageError, match="opened with vocab_only"):
            engine.logits([1])


def test_lengths_and_ids_are_checked(small_gguf_file: Path) -> None:
    with LlamaEngine(small_gguf_file, n_ctx=8) as engine:
        for call in (
            lambda: engine.logits([]),
            lambda: engine.logits([1] * 9),
            lambda: engine.score([1]),
            lambda: engine.logits([VOCAB]),
            lambda: engine.logits([-1]),
            lambda: engine.generate([1, 2], 7),
            lambda: engine.generate([1], 0),
            lambda: engine.speed([1], -1),
            lambda: engine.detokenize([9999]),
        ):
            with pytest.raises(UsageError):
                call()
        assert engine.logits([1] * 8).shape == (8, VOCAB)  # and it still answers
    with pytest.raises(UsageError):
        LlamaEngine(small_gguf_file, n_ctx=8, n_batch=9)


def test_speed(small_gguf_file: Path) -> None:
    with LlamaEngine(small_gguf_file, n_ctx=64) as engine:
        speed = engine.speed(list(range(20)), 5)
        assert (speed.prefill_tokens, speed.decode_tokens) == (20, 5)
        assert speed.prefill_seconds > 0 and speed.decode_seconds > 0
        assert speed.resident_bytes > small_gguf_file.stat().st_size
        pid = engine.pid
    assert gone(pid) and resident_bytes(pid) == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV])
def test_a_dead_child_is_a_typed_error(small_gguf_file: Path, number: signal.Signals) -> None:
    with LlamaEngine(small_gguf_file, n_ctx=16) as engine:
        os.kill(engine.pid, number)
        with pytest.raises(EngineCrashedError, match=number.name) as caught:
            for _ in range(100):
                engine.logits([1])
        assert "\n" not in caught.value.message and caught.value.exit_code == 69
        with pytest.raises(EngineCrashedError, match="has ended"):
            engine.tokenize(["a"], parse_special=False)


def test_an_assertion_of_llama_cpp_is_a_typed_error_that_quotes_it(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"n_layer": 0, "hidden": 64, "n_ff": 64, "n_head": 4, "n_head_kv": 4, "vocab": 32}
    with pytest.raises(EngineCrashedError, match=r"GGML_ASSERT.*n_layer") as caught:
        LlamaEngine(random_gguf(tmp_path / "empty.gguf", tied=True, **sizes))
    assert "SIGABRT" in caught.value.message and "/tmp" not in caught.value.message


def test_child_ends_when_its_parent_is_killed(small_gguf_file: Path) -> None:
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom exporters.llamacpp.engine import LlamaEngine\n"
        "engine = LlamaEngine(Path(sys.argv[1]), n_ctx=16)\nprint(engine.pid, flush=True)\ntime.sleep(60)\n"
    )
    command = [sys.executable, "-c", program, str(small_gguf_file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.kill()
    assert gone(pid)


def test_a_module_in_the_working_directory_is_not_run(
    small_gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llama_cpp.py").write_text("raise SystemExit('hijacked')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    with LlamaEngine(small_gguf_file, vocab_only=True) as engine:
        assert engine.n_vocab == VOCAB


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        LlamaEngine(tmp_path / "none.gguf")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.5, 0.999])
def test_a_truncated_file_is_damaged(small_gguf_file: Path, tmp_path: Path, share: float) -> None:
    data = small_gguf_file.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DamagedFileError) as caught:
        LlamaEngine(path)
    assert "\n" not in caught.value.message and "cut.gguf" in caught.value.message


def test_flipped_bytes_never_escape_as_another_error(small_gguf_file: Path, tmp_path: Path) -> None:
    data = bytearray(small_gguf_file.read_bytes())
    rng = np.random.default_rng(3)
    for trial in range(6):
        broken = bytearray(data)
        for at in rng.integers(0, 2000, 8):
            broken[at] ^= int(rng.integers(1, 256))
        path = tmp_path / f"flipped{trial}.gguf"
        path.write_bytes(broken)
        try:
            with LlamaEngine(path, n_ctx=16) as engine:
                engine.logits([1, 2])
        except CompactEdgeError:
            pass


def test_unknown_architecture(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "no-such-architecture")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedArchitectureError, match="no-such-architecture"):
        LlamaEngine(tmp_path / "odd.gguf")
