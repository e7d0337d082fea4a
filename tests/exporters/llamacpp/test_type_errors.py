"""Estimated errors of types agree with those of files that llama.cpp wrote and the `gguf` package reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import exporters.llamacpp.type_errors as type_errors
from compact.base.cache import Cache
from compact.base.errors import EngineCrashedError, ToolUnavailableError
from compact.checkpoints.gguf_file import read_gguf
from compact.sources.model_source import ModelSource, open_directory
from exporters.llamacpp.header import read_header
from exporters.llamacpp.imatrix import Imatrix
from exporters.llamacpp.quantize import quantize_gguf
from exporters.llamacpp.type_errors import TypeErrors, measure_type_errors
from exporters.native.child import NativeChild
from tests.checkpoints import write_checkpoint
from tests.exporters.small_gguf import random_imatrix

Values = np.ndarray[Any, np.dtype[np.float32]]
# The K types, from many bits to few.
FALLING = ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """Rows that fit blocks of 256."""
    folder = write_checkpoint(
        tmp_path_factory.mktemp("m") / "m", hidden_size=256, intermediate_size=512, num_hidden_layers=1
    )
    return open_directory(folder, name="m", origin="m")


@pytest.fixture(scope="module")
def float_file(source: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from exporters.gguf_writer.metadata import GgufMetadata
    from exporters.gguf_writer.write import write_gguf

    path = tmp_path_factory.mktemp("float") / "f32.gguf"
    write_gguf(source.directory, path, "F32", metadata=GgufMetadata(name="m"))
    return path


@pytest.fixture(scope="module")
def matrix(float_file: Path) -> Imatrix:
    return random_imatrix(read_header(float_file).model_shape("f32.gguf"))


@pytest.fixture(scope="module")
def weighted(source: ModelSource, matrix: Imatrix, tmp_path_factory: pytest.TempPathFactory) -> TypeErrors:
    return measure_type_errors(source, matrix, Cache(tmp_path_factory.mktemp("cache"), [], []))


@pytest.fixture(scope="module")
def plain(source: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> TypeErrors:
    return measure_type_errors(source, None, Cache(tmp_path_factory.mktemp("cache"), [], []))


def values_of(path: Path, name: str) -> Values:
    file = read_gguf(path)
    tensor = file.tensors[name]
    return gguf.quants.dequantize(file.read_rows(tensor, 0, tensor.shape[0]), tensor.qtype)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("quant", "kind"), [("Q8_0", "Q8_0"), ("Q4_K_S", "Q4_K"), ("IQ4_NL", "IQ4_NL")])
@pytest.mark.parametrize("with_matrix", [True, False])
def test_errors_are_those_of_a_quantised_file(
    float_file: Path,
    matrix: Imatrix,
    weighted: TypeErrors,
    plain: TypeErrors,
    tmp_path: Path,
    quant: str,
    kind: str,
    with_matrix: bool,
) -> None:
    """Of all rows. The estimate reads 64 rows of a matrix, which have the same distribution here."""
    errors = weighted if with_matrix else plain
    quantize_gguf(
        float_file,
        tmp_path / "q.gguf",
        quant,
        imatrix=matrix if with_matrix else None,
        tensor_types=dict.fromkeys(errors.errors, kind),
    )
    for name in errors.errors:
        exact, stored = values_of(float_file, name), values_of(tmp_path / "q.gguf", name)
        weights = matrix.means.get(name, np.ones(exact.shape[1])) if with_matrix else np.ones(exact.shape[1])
        real = float(((exact - stored) ** 2 * weights).sum() / (exact**2 * weights).sum())
        assert errors.at(name, kind) == pytest.approx(real, rel=0.12), name


def test_every_matrix_has_an_error_and_fewer_bits_a_larger_one(weighted: TypeErrors) -> None:
    matrices = {f"blk.0.{part}.weight" for part in ("attn_q", "attn_k", "attn_v", "attn_output")}
    matrices |= {f"blk.0.{part}.weight" for part in ("ffn_gate", "ffn_up", "ffn_down")}
    assert set(weighted.errors) == matrices | {"token_embd.weight"}
    for name in weighted.errors:
        errors = [weighted.at(name, kind) for kind in FALLING]
        assert errors == sorted(errors)
        assert 0 < errors[0] < 1e-4
        assert 0.03 < errors[-1] < 0.5
        assert weighted.at(name, "F16") == 0.0


def test_a_matrix_lowers_the_weighted_error_and_allows_more_types(weighted: TypeErrors, plain: TypeErrors) -> None:
    assert "IQ2_XS" in weighted.errors["blk.0.ffn_up.weight"]
    assert "IQ2_XS" not in plain.errors["blk.0.ffn_up.weight"]
    # The embedding has no entry in an importance matrix.
    assert weighted.errors["token_embd.weight"] == plain.errors["token_embd.weight"]


def test_types_whose_blocks_do_not_fit_are_missing(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", hidden_size=64, intermediate_size=256, num_hidden_layers=1)
    errors = measure_type_errors(open_directory(folder, name="m", origin="m"), None, Cache(tmp_path / "c", [], []))
    assert "Q4_K" in errors.errors["blk.0.ffn_down.weight"]
    assert not {"Q4_K", "IQ4_XS"} & set(errors.errors["blk.0.ffn_up.weight"])
    assert {"Q8_0", "IQ4_NL"} <= set(errors.errors["blk.0.ffn_up.weight"])


def test_means_are_over_matrices_and_apart_for_embedding_and_head() -> None:
    errors = TypeErrors(
        {
            "blk.0.ffn_up.weight": {"Q8_0": 0.001, "Q4_0": 0.01},
            "blk.0.ffn_down.weight": {"Q8_0": 0.003, "Q4_0": 0.03},
            "token_embd.weight": {"Q8_0": 0.002},
        }
    )
    types = {"blk.0.ffn_up.weight": "Q4_0", "blk.0.ffn_down.weight": "Q8_0", "token_embd.weight": "Q8_0"}
    body, head = errors.of(types)
    assert body == pytest.approx(0.0065)
    assert head == pytest.approx(0.002)
    assert errors.of({**types, "token_embd.weight": "F16"})[1] == 0.0


def test_the_cache_answers_the_second_time(
    source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type_errors, "TYPES", ("Q8_0",))
    cache = Cache(tmp_path, [], [])
    first = measure_type_errors(source, None, cache)

    def never(*_: object) -> NativeChild:
        raise AssertionError("nothing is measured twice")

    monkeypatch.setattr(type_errors, "NativeChild", never)
    assert measure_type_errors(source, None, cache) == first


def test_an_abort_of_ggml_is_an_error_in_a_line(
    source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ggml aborts at IQ2_XXS without a matrix: GGML_ASSERT(quant_weights)."""
    monkeypatch.setattr(type_errors, "_fitting", lambda _n_in, *, has_matrix: ["IQ2_XXS"])
    with pytest.raises(EngineCrashedError, match=r"^m: llama.cpp died .*GGML_ASSERT") as caught:
        measure_type_errors(source, None, Cache(tmp_path, [], []))
    assert caught.value.exit_code == 69
    assert "\n" not in caught.value.message


def test_a_missing_library_is_an_error_in_a_line(
    source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child finds another package of the name first. It has no `lib` folder."""
    (tmp_path / "llama_cpp.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ToolUnavailableError, match="ggml's library is missing") as caught:
        measure_type_errors(source, None, Cache(tmp_path / "cache", [], []))
    assert caught.value.exit_code == 69
    assert "\n" not in caught.value.message
    (tmp_path / "llama_cpp.py").write_text("raise ImportError('no such thing')")
    with pytest.raises(ToolUnavailableError, match="llama-cpp-python cannot be used: no such thing"):
        measure_type_errors(source, None, Cache(tmp_path / "cache", [], []))
