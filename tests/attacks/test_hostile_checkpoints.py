"""Checkpoints, plans and sums made to break a reader: each must end in a typed error of the data, run no code, read
nothing outside its directory and publish nothing.
"""

from __future__ import annotations

import json
import pickle
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compact.base.errors import (
    EXIT_DATA,
    CompactEdgeError,
    DamagedFileError,
    DataError,
    MixtureOfExpertsError,
    PickleRefusedError,
    QuantizedCheckpointError,
    RemoteCodeRefusedError,
    UnsafePathError,
    UnsupportedArchitectureError,
)
from compact.calibration.calibration_set import make_calibration
from compact.forward.evaluate import evaluate_checkpoint
from compact.forward.load import load_model
from tests.attacks.hostile import change, junk, run
from tests.checkpoints import write_checkpoint

INDEX = "model.safetensors.index.json"


def refused(model: Path, scratch: Path, expected: type[DataError]) -> DataError:
    with pytest.raises(expected) as caught:
        run(model, scratch)
    assert caught.value.exit_code == EXIT_DATA
    assert "\n" not in caught.value.message
    assert not (scratch / "out").exists()
    return caught.value


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "last.ckpt"])
def test_pickled_weights_are_not_opened(model: Path, tmp_path: Path, name: str) -> None:
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    error = refused(model, tmp_path, PickleRefusedError)
    assert name in error.message
    assert not (tmp_path / "ran").exists()


def test_a_pickle_that_calls_itself_safetensors(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    refused(model, tmp_path, PickleRefusedError)
    assert not (tmp_path / "ran").exists()


def test_pickles_beside_safetensors_are_ignored(model: Path, tmp_path: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    (model / "training_args.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    run(model, tmp_path)
    evaluate_checkpoint(tmp_path / "out", "some text", device="cpu")
    load_model(model)
    assert not (tmp_path / "ran").exists()
    assert not list((tmp_path / "out").glob("*.bin"))


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_its_own_is_refused(model: Path, tmp_path: Path, file: str) -> None:
    (model / "evil.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    change(model / file, auto_map={"AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.T", None]})
    error = refused(model, tmp_path, RemoteCodeRefusedError)
    assert file in error.message
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name",
    ["../outside.safetensors", "/etc/hostname", "..\\outside.safetensors", "C:\\x.safetensors", "a/b", "..", "", "\0"],
)
def test_a_shard_outside_the_directory(tmp_path: Path, name: str) -> None:
    model = write_checkpoint(tmp_path / "m", shards=2)
    (tmp_path / "outside.safetensors").write_bytes((model / "model-00001-of-00002.safetensors").read_bytes())
    index = json.loads((model / INDEX).read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], name)
    (model / INDEX).write_text(json.dumps(index))
    refused(model, tmp_path, UnsafePathError)


@pytest.mark.parametrize("weight_map", [None, [], {}, {"a": 7}, {"a": 7, "b": "x"}, {"a": ["x"]}, {"a": None}, "x"])
def test_an_index_that_is_none(tmp_path: Path, weight_map: object) -> None:
    model = write_checkpoint(tmp_path / "m", shards=2)
    (model / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    refused(model, tmp_path, DamagedFileError)


def test_a_shard_that_links_out_of_the_directory(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m", shards=2)
    shard = model / "model-00002-of-00002.safetensors"
    shard.rename(tmp_path / "blob")
    shard.symlink_to(tmp_path / "blob")
    refused(model, tmp_path, UnsafePathError)


def test_a_licence_that_links_to_a_secret(model: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (model / "LICENSE").symlink_to(tmp_path / "secret")
    refused(model, tmp_path, UnsafePathError)


def test_a_folder_of_templates_that_links_out(model: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.jinja").write_text("secret")
    (model / "additional_chat_templates").symlink_to(tmp_path / "elsewhere")
    refused(model, tmp_path, UnsafePathError)


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "awq", "bits": 4},
        {"quant_method": "fp8", "activation_scheme": "dynamic"},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"load_in_8bit": True},
        "yes",
    ],
)
def test_a_quantised_checkpoint(model: Path, tmp_path: Path, quantization: Any) -> None:
    change(model / "config.json", quantization_config=quantization)
    error = refused(model, tmp_path, QuantizedCheckpointError)
    if isinstance(quantization, dict):
        assert quantization.get("quant_method", "unknown") in error.message


def test_quantised_tensors_without_a_word_of_it(model: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    for dtype in (torch.int8, torch.float8_e4m3fn):
        weights["model.layers.0.mlp.up_proj.weight"] = torch.zeros(96, 64).to(dtype)
        save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
        error = refused(model, tmp_path, DataError)
        assert "up_proj" in error.message


def test_a_mixture_of_experts(model: Path, tmp_path: Path) -> None:
    change(model / "config.json", architectures=["MixtralForCausalLM"], num_local_experts=8)
    refused(model, tmp_path, MixtureOfExpertsError)


def test_an_unknown_architecture(model: Path, tmp_path: Path) -> None:
    change(model / "config.json", architectures=["MambaForCausalLM"])
    error = refused(model, tmp_path, UnsupportedArchitectureError)
    assert "MambaForCausalLM" in error.message
    assert error.hint is not None and "LlamaForCausalLM" in error.hint and "Qwen2ForCausalLM" in error.hint


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_truncated_weights(model: Path, tmp_path: Path, share: float) -> None:
    data = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(data[: int(len(data) * share)])
    refused(model, tmp_path, DamagedFileError)


def head(header: bytes, length: int | None = None, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


HEADS = {
    "a length beyond everything": head(b"{}", 2**64 - 1),
    "a length of a terabyte": head(b"{}", 2**40),
    "nested too deep": head(b'{"a":' * 100_000),
    "not JSON": head(b"x" * 64),
    "not UTF-8": head(b'{"\xff": 1}'),
    "a list": head(b"[]"),
    "offsets beyond the file": head(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'),
    "offsets that run backwards": head(b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[16,0]}}', data=b"0" * 16),
    "a shape that overflows": head(
        json.dumps({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 16]}}).encode(), data=b"0" * 16
    ),
    "a negative size": head(b'{"a":{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}}', data=b"0" * 16),
    "an unknown type": head(b'{"a":{"dtype":"Q4","shape":[4],"data_offsets":[0,16]}}', data=b"0" * 16),
    "overlapping tensors": head(
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"b":{"dtype":"F32","shape":[4],"data_offsets":[8,24]}}',
        data=b"0" * 24,
    ),
    "a hole": head(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}',
        data=b"0" * 12,
    ),
    "nothing behind": head(b"{}", data=b"0" * 100),
    "empty": b"",
}


@pytest.mark.parametrize("case", HEADS)
def test_a_hostile_header(model: Path, tmp_path: Path, case: str) -> None:
    (model / "model.safetensors").write_bytes(HEADS[case])
    tracemalloc.start()
    try:
        refused(model, tmp_path, DamagedFileError)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


NO_OBJECTS = [b"", b"{", b"[]", b"7", b"null", b'"text"', b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b"NaN"]


@pytest.mark.parametrize("content", NO_OBJECTS, ids=lambda c: repr(c[:6]))
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_a_file_that_is_no_object(model: Path, tmp_path: Path, file: str, content: bytes) -> None:
    (model / file).write_bytes(content)
    error = refused(model, tmp_path, DataError)
    assert file in error.message


TOKENIZERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "an id out of range": lambda t: t["model"]["vocab"].update({"zz": 10**9}),
    "a duplicate id": lambda t: t["model"]["vocab"].update({"zz": 7}),
    "a duplicate id of an added token": lambda t: t["added_tokens"].append({"id": 7, "content": "<x>"}),
    "an added id out of range": lambda t: t["added_tokens"].append({"id": 10**9, "content": "<x>"}),
    "an added token that is text": lambda t: t["added_tokens"].append("<x>"),
    "a merge of unknown tokens": lambda t: t["model"]["merges"].append(["qqqq", "zzzz"]),
    "a model that is text": lambda t: t.update(model="BPE"),
    "a vocabulary that is a list": lambda t: t["model"].update(vocab=["a"]),
    "a template of unknown ids": lambda t: t.update(
        post_processor={"type": "TemplateProcessing", "special_tokens": {"x": {"id": "x", "ids": [10**9]}}}
    ),
    "a template without ids": lambda t: t.update(
        post_processor={"type": "TemplateProcessing", "special_tokens": {"x": 1}}
    ),
    "a template of text ids": lambda t: t.update(
        post_processor={"type": "TemplateProcessing", "special_tokens": {"x": {"ids": ["1"]}}}
    ),
    "a template that names what it does not define": lambda t: t.update(
        post_processor={
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<none>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {},
        }
    ),
    "a cls without id": lambda t: t.update(post_processor={"type": "BertProcessing", "cls": ["a"], "sep": ["b", 1]}),
    "another kind": lambda t: t["model"].update(type="Unigram"),
    "an unknown pre-tokenizer": lambda t: t.update(pre_tokenizer={"type": "ByteLevel", "use_regex": 7}),
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_a_hostile_tokenizer(model: Path, tmp_path: Path, case: str) -> None:
    tokenizer = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    TOKENIZERS[case](tokenizer)
    (model / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    refused(model, tmp_path, DataError)


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_a_configuration_that_names_an_id_without_a_row(model: Path, tmp_path: Path, file: str) -> None:
    if not (model / file).exists():
        (model / file).write_text("{}")
    change(model / file, eos_token_id=[2, 10**6])
    error = refused(model, tmp_path, DamagedFileError)
    assert str(10**6) in error.message


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_any_value_anywhere_in_tokenizer_json_is_typed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """One value somewhere in the file is replaced by another: refused with a typed error, or pruned."""
    place = tmp_path_factory.mktemp("fuzz")
    model = write_checkpoint(place / "m", tokenizer=TOKENIZER)
    tokenizer = json.loads(json.dumps(TOKENIZER))
    part: Any = tokenizer
    while True:
        keys = list(part) if isinstance(part, dict) else list(range(min(len(part), 4)))
        key = data.draw(st.sampled_from(sorted(keys, key=str)[:8]))
        deeper = isinstance(part[key], dict | list) and len(part[key]) > 0
        if not deeper or data.draw(st.booleans()):
            part[key] = data.draw(junk)
            break
        part = part[key]
    (model / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    try:
        run(model, place)
        make_calibration("stdlib", model, tokens=64, sequence_length=32)
    except CompactEdgeError as error:
        assert error.exit_code in {2, EXIT_DATA}
        assert not error.message.startswith(str(place / "out"))


TOKENIZER: dict[str, Any] = {}


@pytest.fixture(autouse=True, scope="module")
def _tokenizer() -> None:
    from tests.checkpoints import train_tokenizer

    TOKENIZER.update(train_tokenizer(bos=True))


CONFIG_VALUES = st.sampled_from(
    ["hidden_act", "rope_theta", "rms_norm_eps", "rope_scaling", "rope_parameters", "attention_bias", "mlp_bias",
     "tie_word_embeddings", "bos_token_id", "eos_token_id", "max_position_embeddings", "dtype", "head_dim",
     "hidden_size", "num_attention_heads", "architectures", "model_type", "initializer_range", "pretraining_tp"]
)  # fmt: skip


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(key=CONFIG_VALUES, value=junk)
def test_any_value_in_config_json_is_typed(tmp_path_factory: pytest.TempPathFactory, key: str, value: object) -> None:
    place = tmp_path_factory.mktemp("fuzz")
    model = write_checkpoint(place / "m", tokenizer=TOKENIZER)
    change(model / "config.json", **{key: value})
    try:
        run(model, place)
    except CompactEdgeError as error:
        assert error.exit_code in {2, EXIT_DATA}
