"""onnxruntime-genai's engine: tokenizer, chat template and generation, against Hugging Face and plain onnxruntime."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from compact.base.errors import (
    CompactEdgeError,
    DamagedFileError,
    DataError,
    EngineCrashedError,
    ModelNotFoundError,
    UnsafePathError,
    UsageError,
)
from exporters.llamacpp.engine import resident_bytes
from exporters.onnx.genai_engine import GenaiEngine, write_vocabulary_folder
from exporters.onnx.ort_engine import OnnxEngine
from tests.checkpoints import SPECIALS, TEXTS
from tests.exporters.small_gguf import encode
from tests.exporters.small_onnx import CONTEXT, copy_of, edit_graph, edit_json, move_data
from tests.processes import gone

PROMPT = "The quick brown fox doesn't"


@pytest.fixture(scope="module")
def engine(onnx_fp32: Path) -> Iterator[GenaiEngine]:
    with GenaiEngine(onnx_fp32) as opened:
        yield opened


def test_tokenize_equals_hugging_face(engine: GenaiEngine, onnx_checkpoint: Path) -> None:
    texts = [
        "",
        " ",
        "a",
        *TEXTS,
        *SPECIALS,
        "".join(SPECIALS),
        f"a {SPECIALS[1]} b",
        "<tool>x",
        "\ufeffBOM",
        "x" * 5000,
    ]
    ids = engine.tokenize(texts)
    assert ids == [encode(onnx_checkpoint, text) for text in texts]  # neither BOS nor EOS
    assert engine.tokenize([]) == []
    assert engine.detokenize([]) == ""
    assert engine.detokenize(engine.tokenize([PROMPT])[0]) == PROMPT
    broken = engine.tokenize(["a\udcffb", "\ud800"])  # bytes that are no text
    assert all(broken)


def test_no_bos_is_added(tmp_path: Path, onnx_fp32: Path, onnx_checkpoint: Path) -> None:
    from tests.checkpoints import bos_processor

    folder = write_vocabulary_folder(onnx_checkpoint, onnx_fp32, tmp_path / "vocabulary")
    edit_json(folder / "tokenizer.json", lambda document: document.update(post_processor=bos_processor()))
    assert AutoTokenizer.from_pretrained(folder)("a")["input_ids"][0] == 1
    with GenaiEngine(folder, vocab_only=True) as engine:
        assert engine.tokenize(["a"]) == [[encode(onnx_checkpoint, "a")[-1]]]


def test_chat_prompt_equals_transformers(engine: GenaiEngine, onnx_checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(onnx_checkpoint)
    messages = [
        {"role": "system", "content": "é"},
        {"role": "user", "content": 'a "b"\n{{ c }}'},
        {"role": "assistant", "content": "</s>"},
        {"role": "user", "content": "🚀"},
    ]
    for conversation in (messages, messages[1:2]):
        expected = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        assert engine.chat_prompt(conversation) == expected


def test_generation_equals_plain_onnxruntime(engine: GenaiEngine, onnx_fp32: Path) -> None:
    prompt = engine.tokenize(["".join(TEXTS)])[0][:180]
    with OnnxEngine(onnx_fp32) as plain:
        expected = plain.generate(prompt, 20, stop=plain.eog)
    made = engine.generate(prompt, 20)
    assert made.ids == expected.ids
    assert made.gaps == pytest.approx(expected.gaps, abs=1e-3)
    stopped = engine.generate(prompt, 20, stop={expected.ids[3]})
    first = expected.ids.index(expected.ids[3])
    assert stopped.ids == expected.ids[: first + 1] and len(stopped.gaps) == first + 1
    assert engine.generate(prompt, 20) == made  # nothing is left over from the call before


def test_generation_ends_at_eos(onnx_fp32: Path, tmp_path: Path, engine: GenaiEngine) -> None:
    prompt = engine.tokenize([PROMPT])[0]
    expected = engine.generate(prompt, 8).ids
    folder = copy_of(onnx_fp32, tmp_path / "folder")
    edit_json(folder / "genai_config.json", lambda config: config["model"].update(eos_token_id=[expected[2]]))
    with GenaiEngine(folder) as other:
        assert other.eog == (expected[2],)
        assert other.generate(prompt, 8).ids == expected[: expected.index(expected[2]) + 1]


def test_the_search_of_the_configuration_is_not_used(onnx_fp32: Path, tmp_path: Path, engine: GenaiEngine) -> None:
    def sample(config: dict[str, dict[str, object]]) -> None:
        config["search"].update(do_sample=True, temperature=9.0, top_k=50, repetition_penalty=9.0, num_beams=1)

    prompt = engine.tokenize([PROMPT])[0]
    folder = copy_of(onnx_fp32, tmp_path / "folder")
    edit_json(folder / "genai_config.json", sample)
    with GenaiEngine(folder) as other:
        assert other.generate(prompt, 12) == engine.generate(prompt, 12)


def test_a_folder_for_another_device_runs_on_the_cpu(onnx_cuda: Path) -> None:
    with GenaiEngine(onnx_cuda, n_ctx=64) as engine:
        assert engine.execution_provider == "cuda"
        assert len(engine.generate(engine.tokenize([PROMPT])[0], 4).ids) == 4


def test_speed(onnx_fp32: Path) -> None:
    with GenaiEngine(onnx_fp32, n_ctx=64, n_threads=2) as engine:
        speed = engine.speed(list(range(10, 50)), 24)  # fills the context
        assert (speed.prefill_tokens, speed.decode_tokens) == (40, 24)
        assert speed.prefill_seconds > 0 and speed.decode_seconds > 0
        assert speed.resident_bytes > (onnx_fp32 / "model.onnx.data").stat().st_size
        assert engine.speed([5], 0).decode_tokens == 0
        pid = engine.pid
    assert gone(pid) and resident_bytes(pid) == 0


def test_vocabulary_only(onnx_checkpoint: Path, onnx_fp32: Path, tmp_path: Path) -> None:
    folder = write_vocabulary_folder(onnx_checkpoint, onnx_fp32, tmp_path / "vocabulary")
    assert not (folder / "model.onnx").exists()
    with GenaiEngine(folder, vocab_only=True) as engine:
        assert engine.tokenize(TEXTS) == [encode(onnx_checkpoint, text) for text in TEXTS]
        assert engine.chat_prompt([{"role": "user", "content": "a"}])
        for call in (lambda: engine.generate([1], 1), lambda: engine.speed([1], 1)):
            with pytest.raises(UsageError, match="opened with vocab_only"):
                call()
    with pytest.raises(ModelNotFoundError):
        GenaiEngine(folder)


def test_lengths_and_ids_are_checked(engine: GenaiEngine) -> None:
    assert engine.context_length == CONTEXT
    for call in (
        lambda: engine.generate([], 1),
        lambda: engine.generate([1] * CONTEXT, 1),
        lambda: engine.generate([1], 0),
        lambda: engine.generate([engine.n_vocab], 1),
        lambda: engine.generate([-1], 1),
        lambda: engine.speed([1] * 200, CONTEXT - 200),
        lambda: engine.speed([1], -1),
        lambda: engine.detokenize([10**6]),
    ):
        with pytest.raises(UsageError):
            call()
    assert engine.generate([1] * (CONTEXT - 1), 1).ids  # and it still answers


def test_a_dead_child_is_a_typed_error(onnx_fp32: Path) -> None:
    with GenaiEngine(onnx_fp32, vocab_only=True) as engine:
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(EngineCrashedError, match="onnxruntime-genai died during tokenize"):
            for _ in range(100):
                engine.tokenize(["a"])


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no way') }}", "{% for m in messages %}{{ m.content }", "{{ 'a'.upper() }}"]
)
def test_a_template_that_genai_cannot_render(
    onnx_checkpoint: Path, onnx_fp32: Path, tmp_path: Path, template: str
) -> None:
    folder = write_vocabulary_folder(onnx_checkpoint, onnx_fp32, tmp_path / "vocabulary")
    edit_json(folder / "tokenizer_config.json", lambda config: config.update(chat_template=template))
    with GenaiEngine(folder, vocab_only=True) as engine:
        with pytest.raises(DataError) as caught:
            engine.chat_prompt([{"role": "user", "content": "a"}])
        assert "\n" not in caught.value.message
        assert engine.tokenize(["a"])  # and it still answers


def test_hostile_and_damaged_folders(onnx_fp32: Path, tmp_path: Path) -> None:
    folder = copy_of(onnx_fp32, tmp_path / "location")
    edit_graph(folder, move_data("../model.onnx.data"))
    with pytest.raises(UnsafePathError):
        GenaiEngine(folder)
    folder = copy_of(onnx_fp32, tmp_path / "library")
    edit_json(folder / "genai_config.json", lambda config: config["model"].update(encoder={"filename": "/tmp/e.onnx"}))
    with pytest.raises(UnsafePathError):
        GenaiEngine(folder, vocab_only=True)
    for name, content in (("model.onnx", b"\xff" * 99), ("model.onnx.data", b"1234"), ("tokenizer.json", b"{]")):
        folder = copy_of(onnx_fp32, tmp_path / name)
        (folder / name).write_bytes(content)
        with pytest.raises(DamagedFileError) as caught:
            GenaiEngine(folder)
        assert "\n" not in caught.value.message
    folder = copy_of(onnx_fp32, tmp_path / "no tokenizer")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CompactEdgeError):
        GenaiEngine(folder)
