"""Device profiles: those that ship are sound; a file that breaks the schema is refused with its key and a way out."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compact.base.errors import CompactEdgeError, DataError, UsageError
from exporters.gguf.format import GgufFormat
from exporters.llamacpp.quant_types import GGML_TYPES, QUANTS
from targets.profile import Profile, list_profiles, load_profile, profile_names
from targets.schema import Figure

GOOD = """
schema = 1
name = "mine"
description = "A board of mine."
runtime = "llama.cpp"
quantization = "Q4_K_M"
quantization_block32 = "IQ4_NL"
embedding_quant = "Q8_0"
why = "It is small."
context_length = { value = 2048, source = "chosen" }
block_alignment = { value = 256, source = "chosen" }
"""
ONNX = """
schema = 1
name = "mine"
description = "A board of mine."
runtime = "onnxruntime"
quantization = "int4"
embedding_quant = "int8"
execution_provider = "CPUExecutionProvider"
why = "It is small."
context_length = { value = 2048, source = "chosen" }
block_alignment = { value = 32, source = "chosen" }
accuracy_level = { value = 4, source = "chosen" }
"""


def parse(text: str | bytes) -> Profile:
    """A profile of the user's, in a file of the working directory."""
    content = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    with TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("mine.toml").write_bytes(content)
        return load_profile("mine.toml")


def without(key: str, text: str = GOOD) -> str:
    lines = text.splitlines()
    kept = [line for line in lines if not line.startswith(f"{key} =")]
    assert len(kept) == len(lines) - 1
    return "\n".join(kept)


def test_the_profiles_that_ship() -> None:
    names = profile_names()
    for_llama = {"gguf", "phone-arm64", "laptop-x86", "laptop-apple", "laptop-windows", "raspberry-pi-5"}
    assert set(names) == for_llama | {"onnx", "phone-arm64-onnx", "laptop-windows-dml"}
    profiles = list_profiles()
    assert tuple(profile.name for profile in profiles) == names
    for profile in profiles:
        assert load_profile(profile.name) == profile
        assert profile.runtime == ("llama.cpp" if profile.name in for_llama else "onnxruntime")
        assert profile.description.endswith(".")


def test_the_generic_profile_sets_no_budget() -> None:
    profile = load_profile("gguf")
    assert profile.memory_budget_bytes is None
    assert profile.storage_budget_bytes is None
    assert profile.ttft_budget_s is None
    assert profile.tokens_per_second_budget is None
    assert profile.threads is None


def test_values_and_units() -> None:
    profile = load_profile("raspberry-pi-5")
    assert profile.threads is not None
    assert profile.threads.value == 4
    assert profile.isa is not None
    assert "dotprod" in profile.isa.features
    assert "i8mm" not in profile.isa.features
    assert profile.memory_budget_bytes == 2048 * 1024 * 1024
    assert profile.quantization_block == 256
    assert load_profile("phone-arm64").quantization_block == 32


def test_memory_bandwidth_is_below_the_maximum_of_the_memory() -> None:
    """GB/s by JEDEC: transfers per second by the width of all channels. Generic profiles describe no memory."""
    most = {
        "phone-arm64": 3.733 * 4,
        "raspberry-pi-5": 4.267 * 4,
        "laptop-x86": 2.4 * 16,
        "laptop-windows": 2.4 * 16,
        "laptop-apple": 4.266 * 16,
    }
    for profile in list_profiles():
        figure = profile.memory_bandwidth_gb_s
        assert (figure is None) == (profile.name not in most)
        if figure is not None:
            assert 0.6 < figure.value / most[profile.name] < 0.7


def test_a_bandwidth_in_bytes_is_refused() -> None:
    line = 'memory_bandwidth_gb_s = {{ value = {}, source = "measured" }}\n'
    assert parse(GOOD + line.format(12.5)).memory_bandwidth_gb_s == Figure(12.5, "measured")
    with pytest.raises(DataError, match=r"'memory_bandwidth_gb_s\.value' must be between 0.01 and 100000"):
        parse(GOOD + line.format(12_500_000_000))


def test_type_names_are_those_of_the_exporter() -> None:
    for name, block in GgufFormat.file_types.items():
        assert QUANTS[name].block == block
        assert not QUANTS[name].needs_imatrix
    for name, block in GgufFormat.tensor_types.items():
        assert GGML_TYPES[name].block == block


def test_a_file_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.toml").write_text(GOOD, "utf-8")
    (tmp_path / "extensionless").write_text(GOOD, "utf-8")
    monkeypatch.chdir(tmp_path)
    for name in ("mine.toml", str(tmp_path / "mine.toml"), f".{os.sep}extensionless"):
        profile = load_profile(name)
        assert profile.name == "mine"
        assert profile.context_length == Figure(2048, "chosen")
        assert profile.as_dict()["block_alignment"] == {"value": 256, "source": "chosen"}
        assert "threads" not in profile.as_dict()


def test_block32_is_only_needed_where_rows_may_not_fit() -> None:
    text = without("quantization_block32")
    with pytest.raises(DataError, match="'quantization_block32' is missing"):
        parse(text)
    assert parse(text.replace("Q4_K_M", "Q4_0")).quantization_block32 == "Q4_0"


def test_an_onnx_profile() -> None:
    profile = parse(ONNX)
    assert profile.execution_provider == "CPUExecutionProvider"
    assert profile.accuracy_level == Figure(4, "chosen")
    assert profile.quantization_block32 == "int4"
    assert parse(ONNX.replace('"int8"', '"int4"')).embedding_quant == "int4"
    for quantization, embedding in (("int4", "fp32"), ("int8", "int4"), ("fp16", "int8")):
        text = ONNX.replace('"int4"', f'"{quantization}"').replace('"int8"\nexec', f'"{embedding}"\nexec')
        with pytest.raises(DataError, match="'embedding_quant' has the unknown value"):
            parse(text)
    with pytest.raises(DataError, match="'execution_provider' is missing"):
        parse(without("execution_provider", ONNX))


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("phone-arm46", "no target named 'phone-arm46'", "did you mean 'phone-arm64'?"),
        ("RASPBERRY-PI-5", "no target named", "did you mean 'raspberry-pi-5'?"),
        ("rasp", "no target named", "did you mean 'raspberry-pi-5'?"),
        ("zzz", "no target named 'zzz'", "known targets: gguf, laptop-apple"),
        ("", "no target named ''", "known targets"),
        ("gone.toml", "no profile file 'gone.toml'", "name a .toml file that exists"),
        ("./gguf", "no profile file './gguf'", "name a .toml file that exists"),
        ("../profiles/gguf", "no profile file", "name a .toml file that exists"),
        ("a\0b.toml", r"no profile file 'a\\x00b.toml'", "name a .toml file that exists"),
        ("evil\x1b[2J", r"no target named 'evil\\x1b\[2J'", "known targets"),
        (".", "no target named", "known targets"),
        ("/", "no profile file", "name a .toml"),
    ],
)
def test_unknown_names_are_usage_errors(name: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load_profile(name)
    assert caught.value.hint is not None
    assert hint in caught.value.hint
    assert caught.value.exit_code == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(UsageError, match="no profile file"):
        load_profile(str(tmp_path / "pipe.toml"))


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (GOOD + "thraeds = { value = 4, source = 's' }", "'thraeds' is not a key", "did you mean 'threads'?"),
        (GOOD + "zzz = 1", "'zzz' is not a key", "known keys: schema, name"),
        (GOOD + "'a\\nb' = 1", r"'a\\\\nb' is not a key", "known keys"),
        (GOOD + '"a\\nb" = 1', r"'a\\nb' is not a key", "known keys"),
        (GOOD + "threads = 4", "'threads' must be a table, not a whole number", "source ="),
        (GOOD + "threads = { value = 4 }", "'threads.source' is missing", "add the origin of the number"),
        (GOOD + "threads = { source = 's' }", "'threads.value' must be a whole number, not absent", "write"),
        (GOOD + "threads = { value = 4, source = ' ' }", "'threads.source' must be one printable line", "remove"),
        (GOOD + "threads = { value = 4, source = 1 }", "'threads.source' must be text, not a whole number", "write"),
        (GOOD + "threads = { value = '4', source = 's' }", "'threads.value' must be a whole number, not text", "write"),
        (GOOD + "threads = { value = true, source = 's' }", "not true or false", "write"),
        (GOOD + "threads = { value = 4.0, source = 's' }", "'threads.value' must be a whole number, not a num", "w"),
        (GOOD + "threads = { value = 0, source = 's' }", "'threads.value' must be between 1 and 1024", "correct"),
        (GOOD + "threads = { value = -3, source = 's' }", "'threads.value' must be between 1 and 1024", "correct"),
        (GOOD + "threads = { value = 9, sourc = 's' }", "'threads.sourc' is not a key", "did you mean 'source'?"),
        (GOOD + "ttft_budget_s = { value = nan, source = 's' }", "'ttft_budget_s.value' must be", "correct"),
        (GOOD + "ttft_budget_s = { value = inf, source = 's' }", "'ttft_budget_s.value' must be", "correct"),
        (GOOD + "ttft_budget_s = { value = 1979-05-27, source = 's' }", "not a date or time", "write"),
        (GOOD + f"memory_budget_mib = {{ value = {10**30}, source = 's' }}", "must be between", "correct"),
        (GOOD + f"threads = {{ value = {'9' * 5000}, source = 's' }}", "not valid TOML", "toml.io"),
        (GOOD + "isa = ['neon']", "'isa' must be a table, not a list", "features ="),
        (GOOD + "isa = { features = ['neno'], source = 's' }", "unknown name 'neno'", "did you mean 'neon'?"),
        (GOOD + "isa = { features = [], source = 's' }", "'isa.features' must be a list of names", "known names"),
        (GOOD + "isa = { features = [1], source = 's' }", "'isa.features' must be a list of names", "known names"),
        (GOOD + "isa = { features = ['neon', 'neon'], source = 's' }", "contains a feature twice", "once"),
        (GOOD + "isa = { features = ['neon'] }", "'isa.source' is missing", "source"),
        (
            GOOD + "execution_provider = 'CPUExecutionProvider'",
            "is for onnxruntime only",
            "take execution_provider out",
        ),
        (GOOD + "accuracy_level = { value = 4, source = 's' }", "is for onnxruntime only", "take accuracy_level out"),
        (GOOD + "name = 'twice'", "not valid TOML", "toml.io"),
        (GOOD + "x = " + "[" * 20_000, "not valid TOML: nested too deeply", "toml.io"),
        (GOOD + "#" * 70_000, "larger than 64 KiB", "small TOML file"),
        (GOOD.replace("schema = 1", "schema = 2"), "'schema' must be 1", "write schema = 1"),
        (GOOD.replace("schema = 1", "schema = true"), "'schema' must be 1", "write schema = 1"),
        (GOOD.replace("Q4_K_M", "Q4_KM"), "unknown value 'Q4_KM'", "did you mean 'Q4_K_M'?"),
        (GOOD.replace("Q4_K_M", "int4"), "'quantization' has the unknown value 'int4'", "known values"),
        (GOOD.replace("IQ4_NL", "IQ4_XS"), "'quantization_block32' has the unknown value 'IQ4_XS'", "IQ4_NL"),
        (GOOD.replace("llama.cpp", "llamacpp"), "unknown value 'llamacpp'", "did you mean 'llama.cpp'?"),
        (GOOD.replace("value = 256", "value = 100"), "'block_alignment' must be a multiple of 32", "256"),
        (GOOD.replace('"mine"', '"../mine"'), r"'name' is '../mine'", "lower-case letters"),
        (GOOD.replace('"mine"', '".."'), "'name' is '..'", "lower-case letters"),
        (GOOD.replace('"mine"', f'"{"m" * 65}"'), "'name' is", "up to 64"),
        (GOOD.replace("It is small.", "\\u001b[2J"), "'why' must be one printable line", "control characters"),
        (GOOD.replace("It is small.", "x" * 3000), "'why' must be one printable line", "control characters"),
        ("", "'schema' must be 1", "write schema = 1"),
        ("= 3", "not valid TOML", "toml.io"),
        ("\0", "not valid TOML", "toml.io"),
        *[
            (without(key), f"'{key}' is missing", "")
            for key in ("name", "description", "runtime", "quantization", "embedding_quant", "why")
        ],
        (without("context_length"), "'context_length' is missing", "source ="),
        (without("block_alignment"), "'block_alignment' is missing", "source ="),
    ],
    ids=lambda value: value[-40:] if isinstance(value, str) else None,
)
def test_a_file_that_breaks_the_schema_is_refused(text: str, message: str, hint: str) -> None:
    with pytest.raises(DataError, match=r"^mine\.toml: ") as caught:
        parse(text)
    assert caught.value.exit_code == 65
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 300
    assert caught.value.hint is not None
    assert hint in caught.value.hint
    assert re.search(message, caught.value.message)


def test_bytes_that_are_no_text() -> None:
    with pytest.raises(DataError, match=r"not UTF-8 text \(byte 7\)"):
        parse(b"name = \xff")


def test_a_path_with_control_characters_is_escaped(tmp_path: Path) -> None:
    path = tmp_path / "a\x1bb.toml"
    try:
        path.write_text("", "utf-8")
    except OSError:
        pytest.skip("the file system does not take such names")
    with pytest.raises(DataError) as caught:
        load_profile(str(path))
    assert caught.value.message.isprintable()


TOML_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=6,
)


def toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(character):08x}" for character in value) + '"'
    if isinstance(value, list):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(key)} = {toml(item)}" for key, item in value.items()) + "}"
    return repr(value)


@given(key=st.sampled_from(["threads", "isa", "why", "name", "schema", "zzz"]), value=TOML_VALUES)
def test_any_value_is_taken_or_refused_in_words(key: str, value: Any) -> None:
    kept = "\n".join(line for line in GOOD.splitlines() if not line.startswith(f"{key} ="))
    try:
        parse(f"{kept}\n{key} = {toml(value)}")
    except CompactEdgeError as error:
        assert error.message.isprintable()
        assert error.hint


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_words(content: bytes) -> None:
    with pytest.raises(DataError):
        parse(content)
