"""llama.cpp stops where `generate` of Transformers stops."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from compact.base.errors import DamagedFileError, UnsupportedTokenizerError
from compact.checkpoints.gguf_file import read_gguf
from compact.sources.from_gguf import read_gguf_checkpoint
from compact.sources.model_source import open_directory
from compact.vocabulary.end_tokens import end_ids, ends_by_text, settle_end_ids
from exporters.gguf.modelfile import modelfile
from exporters.gguf.parity import check_ends
from exporters.gguf_writer.write import check_exportable, write_gguf
from exporters.llamacpp.engine import LlamaEngine
from tests.checkpoints import train_tokenizer, write_checkpoint
from tests.compact.pruned_checkpoints import prune_to

ENDS = ("eos", "eot", "eom")
EOS = 2
KNOWN = {0, EOS}  # <|endoftext|> and <|im_end|> of the small tokenizer, which llama.cpp knows by their texts


def model_with(
    out: Path, generation: Mapping[str, Any] | None, *, eos: str | None = "<|im_end|>", **config: Any
) -> Path:
    write_checkpoint(out, **config)
    settings = json.loads((out / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings = {**settings, "eos_token": eos}
    (out / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    if generation is not None:
        (out / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return out


def transformers_ends(checkpoint: Path) -> list[int]:
    value = AutoModelForCausalLM.from_pretrained(str(checkpoint)).generation_config.eos_token_id
    return [] if value is None else value if isinstance(value, list) else [value]


# generation_config.json, changes of config.json -> the keys of the GGUF.
CASES: dict[str, tuple[Mapping[str, Any] | None, Mapping[str, Any], dict[str, int]]] = {
    "one end": ({"eos_token_id": EOS}, {}, {"eos": EOS}),
    "an end without a known text": ({"eos_token_id": [EOS, 300]}, {}, {"eos": EOS, "eot": 300}),
    "two of them": ({"eos_token_id": [300, 301, EOS, 300]}, {}, {"eos": EOS, "eot": 300, "eom": 301}),
    "only others": ({"eos_token_id": 300}, {}, {"eos": EOS, "eot": 300}),
    "from config.json": (None, {"eos_token_id": [EOS, 300]}, {"eos": EOS, "eot": 300}),
    "generation_config.json goes first": ({"eos_token_id": 300}, {"eos_token_id": 301}, {"eos": EOS, "eot": 300}),
    "none in generation_config.json": ({"top_k": 5}, {"eos_token_id": 301}, {"eos": EOS}),
    "negative": ({"eos_token_id": [-1, EOS]}, {}, {"eos": EOS}),
}


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_stops_at_every_end(tmp_path: Path, case: str) -> None:
    generation, config, keys = CASES[case]
    checkpoint = model_with(tmp_path / "m", generation, **config)
    ends = transformers_ends(checkpoint)
    assert end_ids(checkpoint) == tuple(dict.fromkeys(token for token in ends if token >= 0))
    path = tmp_path / "m.gguf"
    write_gguf(checkpoint, path, "F32")
    values = read_gguf(path).values
    found = {role: values.get(f"tokenizer.ggml.{role}_token_id") for role in ENDS}
    assert {role: token for role, token in found.items() if token is not None} == keys
    with LlamaEngine(path, vocab_only=True) as engine:
        assert set(engine.eog) == {*(token for token in ends if token >= 0), *KNOWN}
        check = check_ends(checkpoint, engine)
    assert check.passed and check.figures["missing"] == []
    # A GGUF gives back the ends of llama.cpp.
    back = tmp_path / "back"
    back.mkdir()
    read_gguf_checkpoint(path, back)
    assert set(transformers_ends(back)) == set(engine.eog)
    stops = [line for line in modelfile(path, checkpoint).splitlines() if line.startswith("PARAMETER stop")]
    assert len(stops) == len({*(token for token in ends if token >= 0), EOS})


def test_an_end_that_llama_cpp_does_not_know_fails_the_gate(tmp_path: Path) -> None:
    checkpoint = model_with(tmp_path / "m", {"eos_token_id": EOS})
    write_gguf(checkpoint, tmp_path / "m.gguf", "F32", vocab_only=True)
    (checkpoint / "generation_config.json").write_text('{"eos_token_id": [2, 300]}', encoding="utf-8")
    with LlamaEngine(tmp_path / "m.gguf", vocab_only=True) as engine:
        check = check_ends(checkpoint, engine)
    assert check.passed is False and check.detail.startswith("llama.cpp does not stop at ")


@pytest.mark.parametrize(
    ("config", "end"), [({"eos_token_id": 300}, 300), ({"eos_token_id": [300, EOS]}, 300), ({"eos_token_id": EOS}, EOS)]
)
def test_a_tokenizer_without_eos_takes_an_end_of_the_model(tmp_path: Path, config: dict[str, Any], end: int) -> None:
    checkpoint = model_with(tmp_path / "m", None, eos=None, **config)
    write_gguf(checkpoint, tmp_path / "m.gguf", "F32", vocab_only=True)
    assert read_gguf(tmp_path / "m.gguf").values["tokenizer.ggml.eos_token_id"] == end
    with LlamaEngine(tmp_path / "m.gguf", vocab_only=True) as engine:
        assert set(engine.eog) == {end, *KNOWN}  # without the key, llama.cpp would stop at token 11


def refused(checkpoint: Path) -> str:
    messages = []
    for run in (check_exportable, lambda path: write_gguf(path, checkpoint / "x.gguf", "F32", vocab_only=True)):
        with pytest.raises(UnsupportedTokenizerError) as caught:
            run(checkpoint)
        messages.append(caught.value.message)
    assert messages[0] == messages[1] and not (checkpoint / "x.gguf").exists()
    return messages[0]


def test_what_a_gguf_cannot_express_is_refused_before_any_work(tmp_path: Path) -> None:
    many = model_with(tmp_path / "many", {"eos_token_id": [300, 301, 302]})
    assert "generation_config.json: eos_token_id: llama.cpp does not know 3 of these tokens as ends" in refused(many)
    none = model_with(tmp_path / "none", {}, eos=None, eos_token_id=None)
    assert "generation_config.json: eos_token_id: no end token" in refused(none)


@pytest.mark.parametrize(
    ("file", "value", "problem"),
    [
        ("generation_config.json", [2, 99999], "eos_token_id has the id 99999, but the embedding has only"),
        ("config.json", 99999, "eos_token_id has the id 99999, but the embedding has only"),
        ("generation_config.json", "</s>", "is neither a token id nor a list of token ids"),
        ("generation_config.json", [[2]], "is neither a token id nor a list of token ids"),
        ("config.json", True, "is neither a token id nor a list of token ids"),
    ],
)
def test_ends_without_a_row_are_refused_when_the_model_is_opened(
    tmp_path: Path, file: str, value: Any, problem: str
) -> None:
    checkpoint = model_with(tmp_path / "m", {})
    config = json.loads((checkpoint / file).read_text(encoding="utf-8"))
    (checkpoint / file).write_text(json.dumps({**config, "eos_token_id": value}), encoding="utf-8")
    with pytest.raises(DamagedFileError, match=problem) as caught:
        open_directory(checkpoint, name="m", origin="m")
    assert file in caught.value.message


TEXTS = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>"),
    *("<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>"),
    *("<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~["),
    *("<|eos|>", "<|end_of_turn|>", "<eot>", "</S>", "[/INST]", "<|assistant|>", "<|im_start|>"),
)


@pytest.mark.parametrize(
    "texts", [TEXTS, TEXTS[:2], TEXTS[2:], ("</s>", "<|end|>"), ("<|call|>", "<|end|>"), TEXTS[4:8]]
)
def test_llama_cpp_knows_these_texts(tmp_path: Path, texts: tuple[str, ...]) -> None:
    document = train_tokenizer("gpt-2")
    first = max(*document["model"]["vocab"].values(), *(token["id"] for token in document["added_tokens"])) + 1
    new = [text for text in texts if text not in {token["content"] for token in document["added_tokens"]}]
    document["added_tokens"] += [
        {**document["added_tokens"][0], "id": first + n, "content": text} for n, text in enumerate(new)
    ]
    checkpoint = write_checkpoint(tmp_path / "m", tokenizer=document)
    write_gguf(checkpoint, tmp_path / "m.gguf", "F32", vocab_only=True)
    known, never = ends_by_text({token["id"]: token["content"] for token in document["added_tokens"]})
    with LlamaEngine(tmp_path / "m.gguf", vocab_only=True) as engine:
        assert set(engine.eog) == known and not never & known


def test_pruning_keeps_every_end(tmp_path: Path) -> None:
    checkpoint = model_with(tmp_path / "m", {"eos_token_id": [EOS, 418, 419]})
    texts = AutoTokenizer.from_pretrained(str(checkpoint)).convert_ids_to_tokens([EOS, 418, 419])
    pruned = prune_to(checkpoint, tmp_path / "pruned", vocab_size=320, intermediate_size=64, calibration_tokens=64)
    ends = transformers_ends(pruned)
    assert AutoTokenizer.from_pretrained(str(pruned)).convert_ids_to_tokens(ends) == texts
    write_gguf(pruned, tmp_path / "m.gguf", "F32", vocab_only=True)
    with LlamaEngine(tmp_path / "m.gguf", vocab_only=True) as engine:
        assert set(ends) <= set(engine.eog)


def test_an_end_of_the_class_alone_ends_nothing(tmp_path: Path) -> None:
    # Transformers takes ends from the files. The default of the configuration's class ends no text.
    checkpoint = model_with(tmp_path / "m", None, eos_token_id=None, bos_token_id=None)
    assert transformers_ends(checkpoint) == []
    settle_end_ids({}, {"eos_token_id": 7, "bos_token_id": 1}, checkpoint)
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    (checkpoint / "config.json").write_text(json.dumps({**config, "eos_token_id": 7}), encoding="utf-8")
    assert transformers_ends(checkpoint) == []
